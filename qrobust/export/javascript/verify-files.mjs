// What an artifact or a baseline holds, read as verify.py reads it: nothing is used before it is what it must be.
import { TESTS } from './verify-tests.mjs';

/** Why there is no verdict, in one line: expected, got, what to do. */
export class ArtifactError extends Error {}

const AGAIN = 'export the artifact again';
// Names out of a file, or of one, could redraw a terminal or fake a second line.
export const oneLine = text => String(text).split(/\s+/u).filter(Boolean).join(' ').replace(/[^ \P{Z}]|\p{C}/gu, '?');
export const shown = value => typeof value === 'string' ? value : JSON.stringify(value) ?? String(value);

export function expect(condition, expected, got, remedy = AGAIN) {
    if (!condition) throw new ArtifactError(oneLine(`expected ${expected}, got ${oneLine(shown(got)).slice(0, 200)}; ${remedy}`));
}

/** What `work` returns; any error of it becomes one line. */
export async function expecting(expected, work, remedy = AGAIN) {
    try {
        return await work();
    } catch (error) {
        if (error instanceof ArtifactError) throw error;
        return expect(false, expected, `${error?.name ?? 'error'}: ${error?.message ?? error}`, remedy);
    }
}

// JSON

/** The value of a JSON file. Throws for a key that stands twice, or a number that is not finite. */
export function readJson(bytes) {
    const text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
    const value = JSON.parse(text, (_, part) => {
        if (typeof part === 'number' && !Number.isFinite(part)) throw new Error('a number that is not finite');
        return part;
    });
    const open = [];
    for (const [token, key, colon] of text.matchAll(/("(?:[^"\\]|\\.)*")(\s*:)?|[{}[\]]/gu)) {
        if (token === '{' || token === '[') open.push(new Set());
        else if (token === '}' || token === ']') open.pop();
        else if (colon) {
            const keys = open.at(-1), name = JSON.parse(key);
            if (keys.has(name)) throw new Error(`key ${key} twice`); // two readers would take two values of it
            keys.add(name);
        }
    }
    return value;
}

export const isTable = value => typeof value === 'object' && value !== null && !Array.isArray(value);
const own = (table, name) => isTable(table) && Object.hasOwn(table, name) ? table[name] : undefined;

/** Whether two values of JSON are the same, in whatever order their keys stand. */
export function same(one, other) {
    if (typeof one !== 'object' || typeof other !== 'object' || !one || !other) return one === other;
    const keys = Object.keys(one);
    return Array.isArray(one) === Array.isArray(other) && keys.length === Object.keys(other).length
        && keys.every(key => Object.hasOwn(other, key) && same(one[key], other[key]));
}

// The manifest

const MAX_PIXELS = 2 ** 24, MAX_BYTES = 2 ** 29, MAX_JSON = 2 ** 24, MAX_FILES = 32;
const KINDS = {
    text: value => typeof value === 'string', table: isTable, list: Array.isArray, anything: value => value !== undefined,
    count: value => Number.isInteger(value) && value >= 1, share: value => value >= 0 && value <= 1 && typeof value === 'number',
};
const MANIFEST = {
    text: ['name', 'producer', 'data_fingerprint', 'input name', 'output name', 'target name', 'target provider', 'threat norm'],
    table: ['bits_per_layer', 'recipe', 'versions', 'metrics before', 'metrics after', 'target session_options',
        'files model.onnx', 'files suite.npz', 'files verify.py'],
    list: ['input shape', 'classes'], anything: ['bits', 'seed'], count: ['opset', 'square queries', 'square n'],
    share: ['reference clean', 'limits label_flips', 'limits accuracy_drop', 'limits robust_drop', 'limits square_gap',
        'statistics alpha', 'statistics power', 'statistics detected_drop'],
};
const IMAGES = ['["NCHW","float32",[0,1]]', '["NHWC","uint8",[0,255]]'];
const printable = text => typeof text === 'string' && !/[^ \P{Z}]|\p{C}/u.test(text);

function checkedManifest(manifest) {
    const version = manifest.schema_version;
    expect(version === 1 || version === 2, 'schema_version 1 or 2, which is what this version reads', version,
        'upgrade qrobust, or export the artifact again if it is the older one');
    const keys = Object.entries(MANIFEST).flatMap(([kind, names]) => names.map(name => [kind, name.split(' ')]));
    for (const name of Object.keys(manifest.reference)) keys.push(['share', ['reference', name]]);
    for (const [kind, path] of keys) {
        const value = path.reduce(own, manifest);
        expect(KINDS[kind](value), `a valid ${kind} as '${path.join(' ')}' in manifest.json`, value);
    }
    manifest.statistics.test ??= 'mcnemar-tolerated'; // artifacts of version 0.1.0 name none
    checkMeaning(manifest);
    checkPolicy(manifest);
    return manifest;
}

function checkMeaning({ name, input, classes, threat, parity = null, reference }) {
    const image = JSON.stringify([input.layout, input.dtype, input.range]);
    expect(IMAGES.includes(image), `images as one of ${IMAGES.join(' ')}`, image);
    const values = input.shape.reduce((product, size) => product * size, 1);
    const valid = input.shape.length === 3 && input.shape.every(KINDS.count) && values <= MAX_PIXELS && classes.length >= 2;
    expect(valid, `a shape of three sizes, up to ${MAX_PIXELS} in all, and two classes`, [input.shape, classes]);
    expect(['linf', 'l2'].includes(threat.norm), 'a norm out of linf, l2', threat.norm, 'upgrade qrobust');
    const most = threat.norm === 'linf' ? 1 : Math.sqrt(values);
    const bounded = typeof threat.eps === 'number' && threat.eps >= 1 / 255 - 1e-9 && threat.eps <= most;
    expect(bounded, `eps in [1/255, ${most.toPrecision(4)}] of a pixel's range as 'threat eps'`, threat.eps);
    expect(parity === null || parity === 'none' || isTable(parity), "a table or 'none' as 'parity'", parity);
    expect(!Object.hasOwn(reference, 'square'), 'another name for a stored attack', 'square');
    expect(Object.keys(reference).length > 1, "a stored attack in 'reference'", 'clean images alone');
    for (const one of [name, ...classes, ...Object.keys(reference)])
        expect(printable(one), 'printable names in manifest.json', JSON.stringify(one));
}

function checkPolicy({ statistics, limits, square }) {
    // Beyond these limits would hold for a network that is broken, and Square would break none.
    for (const name of ['label_flips', 'accuracy_drop', 'robust_drop', 'square_gap'])
        expect(limits[name] <= 0.1, `a limit of ${name} up to 0.1`, limits[name], 'tolerate less');
    const { alpha, power, detected_drop: detected, test } = statistics;
    const most = Math.max(limits.accuracy_drop, limits.robust_drop);
    const valid = alpha >= 0.001 && alpha < 0.5 && power >= 0.5 && power <= 1 - 1e-6 && detected > most + 1e-6 && detected <= 0.5;
    expect(valid, `0.001 <= alpha < 0.5 <= power < 1 and detected_drop above the tolerated ${most}, up to 0.5`, statistics);
    expect(Object.hasOwn(TESTS, test), `a statistical test out of ${Object.keys(TESTS).join(', ')}`, test, 'upgrade qrobust');
    expect(square.queries >= 50 && square.queries <= 10 ** 6, '50 to 1000000 queries of Square', square.queries);
    for (const limit of ['logit_change', 'latency_ms', 'size_bytes'].map(name => limits[name] ?? null))
        expect(limit === null || (typeof limit === 'number' && limit > 0),
            'null or a number above 0 as limit of logit_change, latency_ms and size_bytes', limit);
}

// The suite: a zip of .npy files

/** Unpacks no more than its directory says: a few bytes of zip can claim terabytes. */
async function inflated(packed, size) {
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('deflate-raw'));
    const bytes = new Uint8Array(size), reader = stream.getReader();
    for (let at = 0; ;) {
        const { done, value } = await reader.read();
        if (done ? at !== size : at + value.length > size) throw new Error(`not the ${size} bytes that it lists`);
        if (done) return bytes;
        bytes.set(value, at);
        at += value.length;
    }
}

const CRC = Uint32Array.from({ length: 256 }, (_, byte) => {
    for (let k = 0; k < 8; k++) byte = byte & 1 ? 0xedb88320 ^ byte >>> 1 : byte >>> 1;
    return byte;
});
const crc32 = bytes => ~bytes.reduce((sum, byte) => CRC[(sum ^ byte) & 255] ^ sum >>> 8, -1) >>> 0;

/** Arrays by name, from a zip's directory at its end; its long form, for 4 GiB and more, is not read. */
async function readNpz(file) {
    const view = new DataView(file.buffer, file.byteOffset, file.length), arrays = {};
    let end = file.length - 22, total = 0;
    while (end >= 0 && view.getUint32(end, true) !== 0x06054b50) end--;
    if (end < 0) throw new Error('no zip');
    let at = view.getUint32(end + 16, true);
    for (let left = view.getUint16(end + 10, true); left > 0; left--) {
        if (view.getUint32(at, true) !== 0x02014b50) throw new Error('no directory of a zip');
        const [method, length] = [10, 28].map(place => view.getUint16(at + place, true));
        const [crc, packed, size, where] = [16, 20, 24, 42].map(place => view.getUint32(at + place, true));
        const name = new TextDecoder().decode(file.subarray(at + 46, at + 46 + length)).replace(/\.npy$/, '');
        total += size;
        expect((method === 0 || method === 8) && total <= MAX_BYTES, `at most ${MAX_BYTES} bytes deflated in suite.npz`, total);
        const from = where + 30 + view.getUint16(where + 26, true) + view.getUint16(where + 28, true);
        const raw = file.subarray(from, from + packed), bytes = method ? await inflated(raw, size) : raw;
        if (crc32(bytes) !== crc) throw new Error(`another checksum of ${name}`);
        if (Object.hasOwn(arrays, name)) throw new Error(`${name} twice`);
        arrays[name] = readNpy(bytes);
        at += 46 + length + view.getUint16(at + 30, true) + view.getUint16(at + 32, true);
    }
    return arrays;
}

const DTYPES = {
    '|u1': ['uint8', raw => new Uint8Array(raw)],
    '<i8': ['int64', raw => Float64Array.from(new BigInt64Array(raw), Number)], // labels, exact far beyond any
    '<f4': ['float32', raw => new Float32Array(raw)],
};

function readNpy(bytes) {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length), long = bytes[6] > 1;
    if (hex(bytes.subarray(0, 6)) !== '934e554d5059') throw new Error('no .npy');
    const start = long ? 12 : 10, from = start + (long ? view.getUint32(8, true) : view.getUint16(8, true));
    const header = new TextDecoder().decode(bytes.subarray(start, from));
    const said = /^\{'descr': '([^']+)', 'fortran_order': False, 'shape': \(([\d, ]*)\), \}\s*$/.exec(header);
    if (!said || !DTYPES[said[1]]) throw new Error(`an array as ${header.trim()}`);
    const shape = said[2].split(',').filter(size => size.trim()).map(Number), [dtype, read] = DTYPES[said[1]];
    const data = read(bytes.slice(from).buffer);
    if (data.length !== shape.reduce((product, size) => product * size, 1)) throw new Error(`${data.length} values of ${shape}`);
    return { data, shape, dtype };
}

const sizes = (...shape) => shape.join(' x ');
const share = (labels, y) => labels.reduce((right, label, k) => right + (label === y[k]), 0) / y.length;

async function readSuite(bytes, manifest) {
    const suite = await expecting('plain arrays in suite.npz', () => readNpz(bytes));
    const { input, classes, reference } = manifest, n = suite.y?.shape[0] ?? 0;
    const shape = imageShape(manifest), names = Object.keys(reference);
    const expected = { y: ['int64', sizes(n)], 'logits.clean': ['float32', sizes(n, classes.length)] };
    for (const name of names) {
        expected[`x.${name}`] = ['uint8', sizes(n, ...shape)];
        expected[`label.${name}`] = ['int64', sizes(n)];
        const rows = suite[`found_by.${name}`];
        if (name !== 'clean' && rows) expected[`found_by.${name}`] = ['uint8', sizes(n, rows.shape.at(-1))];
    }
    const listed = keys => Object.keys(keys).sort().join(', ');
    expect(n >= 1 && listed(suite) === listed(expected), `images and ${listed(expected)} in suite.npz`, listed(suite));
    for (const [name, [dtype, size]] of Object.entries(expected)) {
        const array = suite[name], header = `${sizes(...array.shape)} ${array.dtype}`;
        expect(header === `${size} ${dtype}`, `${name} as ${size} ${dtype}`, header);
        const valid = dtype !== 'int64' || array.data.every(label => label >= 0 && label < classes.length);
        expect(valid, `labels ${name} in [0, ${classes.length})`, 'others');
        const ascii = !name.startsWith('found_by.') || array.data.every(byte => byte === 0 || (byte >= 32 && byte < 127));
        expect(ascii, `printable ASCII in ${name}`, 'other bytes');
    }
    for (const name of names) {
        const found = share(suite[`label.${name}`].data, suite.y.data);
        expect(Math.abs(found - reference[name]) < 1e-9,
            `labels of ${name} that are right in ${reference[name]}, as the manifest says`, found);
    }
    checkBall(suite, manifest);
    return suite;
}

/** [C, H, W] of an image, as a suite holds it. */
export function imageShape({ input: { layout, shape } }) {
    return layout === 'NHWC' ? [shape[2], shape[0], shape[1]] : shape;
}

/** Stored attacks lie in the ball around the clean images and change some: others would prove nothing. */
function checkBall(suite, { reference, threat: { norm, eps }, square }) {
    const clean = suite['x.clean'].data, n = suite.y.shape[0], size = clean.length / n;
    for (const name of Object.keys(reference)) {
        const attacked = suite[`x.${name}`].data;
        let furthest = 0;
        for (let image = 0; image < n; image++) {
            let moved = 0;
            for (let at = image * size; at < (image + 1) * size; at++) {
                const steps = Math.abs(attacked[at] - clean[at]);
                moved = norm === 'linf' ? Math.max(moved, steps) : moved + steps * steps;
            }
            furthest = Math.max(furthest, (norm === 'linf' ? moved : Math.sqrt(moved)) / 255);
        }
        expect(furthest <= eps * (1 + 1e-5) + 1e-5, `images of ${name} within eps ${eps.toPrecision(4)} in ${norm}`, furthest);
        expect(name === 'clean' || furthest > 0, `images of ${name} that differ from the clean ones`, 'the same');
    }
    expect(square.n >= Math.min(32, n), 'Square on 32 images or more, or on the whole suite', square.n);
}

// The artifact

export const hex = bytes => Array.from(bytes, byte => byte.toString(16).padStart(2, '0')).join('');

export async function sha256(bytes) {
    expect(globalThis.crypto?.subtle, 'WebCrypto, which browsers give to https and localhost alone', 'none', 'serve it so');
    return hex(new Uint8Array(await crypto.subtle.digest('SHA-256', bytes)));
}

/**
 * { manifest, suite, model }, all of them checked. source.read(name, most): the bytes of a file, null where there is
 * none; source.list(): names in the folder, of folders with a / behind, null where a server does not say; source.name: of the folder.
 */
export async function loadArtifact(source) {
    const text = await source.read('manifest.json', MAX_JSON);
    expect(text, `an artifact in ${source.name}`, 'no manifest.json', 'pass an exported folder');
    const manifest = await expecting('JSON with schema_version and reference in manifest.json', () => {
        const table = readJson(text);
        if (!isTable(table) || !isTable(table.reference)) throw new Error('no tables');
        return table;
    });
    checkedManifest(manifest);
    const entries = Object.entries(manifest.files), files = {};
    expect(entries.length <= MAX_FILES, `up to ${MAX_FILES} files in manifest.json`, entries.length);
    for (const name of await source.list() ?? [])
        expect(Object.hasOwn(manifest.files, name) || name === 'manifest.json' || /^signature\.[^/]*$/.test(name),
            `no file in ${source.name} that manifest.json does not list`, name, 'remove it');
    for (const [name, entry] of entries) {
        // Plain names only: a manifest must not make its reader open ../../somewhere.
        expect(/^[^/\\]+$/.test(name) && name !== '.' && name !== '..', 'plain file names in manifest.json', name);
        const bytes = await source.read(name, MAX_BYTES);
        expect(bytes, `${name} in ${source.name}`, 'no such file');
        const measured = { sha256: await sha256(bytes), size_bytes: bytes.length };
        expect(same(measured, entry), `${name} as ${JSON.stringify(entry)}`, measured);
        files[name] = bytes;
    }
    return { manifest, suite: await readSuite(files['suite.npz'], manifest), model: files['model.onnx'] };
}
