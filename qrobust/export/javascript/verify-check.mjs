// The check of an artifact in JavaScript: replay on its session, Square through it, and the verdicts of verify.py.
import { ArtifactError, expect, expecting, hex, imageShape, isTable, readJson, same, sha256, shown } from './verify-files.mjs';
import { general, percent } from './verify-report.mjs';
import { GENERATOR, TESTS, holm, imagesNeeded, pairedInterval, squareAttack, wilson } from './verify-tests.mjs';

const MAX_PIXELS = 2 ** 24, MAX_THREADS = 1024, UPDATE = '--update-baseline --reason TEXT';
const ORIGINS = { torch: 'the network before export', none: 'its own session when it was exported' };
const HINTS = {
    export: 'compare the runtime, its provider and options with the manifest, then export again',
    lost: "compare model and recipe with the baseline's; a wanted loss is pinned by --update-baseline --reason TEXT",
    device: "export for a target that suits this device, or change the target's limit",
    masked: 'gradients misled the stored attacks: attack with other backward passes, losses and restarts',
};

const mean = values => values.reduce((total, value) => total + value, 0) / values.length;
const entries = (names, value) => Object.fromEntries(names.map((name, k) => [name, value(name, k)]));

function median(values) {
    const sorted = Array.from(values).sort((a, b) => a - b), half = sorted.length >> 1;
    return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

// The session

// By onnxruntime's name in a manifest, what onnxruntime-node and onnxruntime-web call it; others are not there.
const PROVIDERS = {
    CPUExecutionProvider: { node: 'cpu', web: 'wasm' },
    WebGpuExecutionProvider: { node: 'webgpu', web: 'webgpu' },
    CUDAExecutionProvider: { node: 'cuda' },
    TensorrtExecutionProvider: { node: 'tensorrt' },
};
const LEVELS = { disable: 'disabled', basic: 'basic', extended: 'extended', all: 'all' };
const COUNTS = ['intra_op_num_threads', 'inter_op_num_threads', 'allow_spinning', 'x64quantprecision'];

/** Options of a session; only the harmless ones of a manifest, which is data: others write files or load libraries. */
function sessionOptions(stated, provider, runtime) {
    for (const [key, value] of Object.entries(stated)) {
        if (key === 'graph_optimization_level') expect(Object.hasOwn(LEVELS, value), 'a level of fusion', value);
        else expect(COUNTS.includes(key), `session options out of graph_optimization_level, ${COUNTS.join(', ')}`, key);
        const valid = !COUNTS.includes(key) || (Number.isInteger(value) && value >= 0 && value <= MAX_THREADS);
        expect(valid, `0 to ${MAX_THREADS} as ${key}`, value);
    }
    const session = { load_model_format: 'ONNX', model_external_initializers_file_folder_path: '/dev/null/none' };
    if ('allow_spinning' in stated) session.intra_op = { allow_spinning: String(Math.min(stated.allow_spinning, 1)) };
    if (stated.x64quantprecision && runtime.saturates) session.x64quantprecision = '1'; // strings alone are read
    const options = {
        executionProviders: [provider], graphOptimizationLevel: LEVELS[stated.graph_optimization_level ?? 'all'],
        logSeverityLevel: 4, extra: { session }, // what fails is thrown, and said once
    };
    if (runtime.kind === 'node') options.intraOpNumThreads = stated.intra_op_num_threads ?? 0;
    if (runtime.kind === 'node' && stated.inter_op_num_threads) options.interOpNumThreads = stated.inter_op_num_threads;
    return options;
}

/** A session on the target's provider, never silently on another. runtime: { ort, kind, saturates }. */
async function openSession({ manifest, model }, runtime) {
    const { input, output, target } = manifest, provider = PROVIDERS[target.provider]?.[runtime.kind];
    expect(provider, `a provider that onnxruntime-${runtime.kind} has`, target.provider, 'check it by verify.py');
    const options = sessionOptions(target.session_options, provider, runtime);
    const session = await expecting(`a model and options for ${target.provider}`,
        () => runtime.ort.InferenceSession.create(model, options), 'export again, or install what it needs');
    expect(session.inputNames.length === 1, 'a model.onnx of one input', session.inputNames.length);
    const { name, type, shape } = session.inputMetadata[0], batch = shape[0];
    const expected = [input.name, input.dtype, input.shape, output.name];
    const valid = same([name, type, shape.slice(1)], expected.slice(0, 3)) && session.outputNames.includes(output.name);
    expect(valid && typeof batch !== 'number', `any batch and ${shown(expected)} of model.onnx`,
        [name, type, shape, session.outputNames]);
    return session;
}

/** Images (n, C, H, W), float32 in [0, 1], as the graph takes them; bytes are rounded to. */
function feed(x, { input }) {
    if (input.dtype !== 'uint8') return x;
    const [height, width, channels] = input.shape, area = height * width, size = area * channels;
    const bytes = new Uint8Array(x.length);
    for (let at = 0; at < x.length; at++) {
        const image = at - at % size, channel = Math.floor(at % size / area);
        bytes[image + at % area * channels + channel] = Math.round(x[at] * 255);
    }
    return bytes;
}

/** A function from images, float32 in [0, 1], to their logits; 256 images at a time, fewer if they are large. */
function logitsOf(session, runtime, manifest) {
    const { input, output, classes } = manifest, size = input.shape.reduce((a, b) => a * b, 1);
    const step = Math.max(Math.min(256, Math.floor(MAX_PIXELS / size)), 1);
    return async x => {
        const logits = new Float32Array(x.length / size * classes.length);
        for (let at = 0; at * size < x.length; at += step) {
            const part = feed(x.subarray(at * size, (at + step) * size), manifest), n = part.length / size;
            const batch = await expecting('model.onnx to run', async () => {
                const images = new runtime.ort.Tensor(input.dtype, part, [n, ...input.shape]);
                return (await session.run({ [input.name]: images }, [output.name]))[output.name];
            });
            const expected = [[n, classes.length], 'float32'], got = [Array.from(batch.dims), batch.type];
            expect(same(got, expected), `logits ${shown(expected)}`, got);
            logits.set(batch.data, at * classes.length);
        }
        expect(logits.every(Number.isFinite), 'finite logits', 'NaN or infinity');
        return logits;
    };
}

const toFloat = pixels => Float32Array.from(pixels, value => Math.fround(value / 255));

function labelsOf(logits, classes) {
    return Array.from({ length: logits.length / classes }, (_, row) => {
        let first = 0;
        for (let k = 1; k < classes; k++) if (logits[row * classes + k] > logits[row * classes + first]) first = k;
        return first;
    });
}

function logitChange(found, stored, classes) {
    const moves = Array.from({ length: stored.length / classes }, (_, row) => {
        let change = 0, length = 0;
        for (let at = row * classes; at < (row + 1) * classes; at++) {
            change += (found[at] - stored[at]) ** 2;
            length += stored[at] ** 2;
        }
        return Math.sqrt(change) / Math.max(Math.sqrt(length), 1e-12);
    });
    return median(moves);
}

/** Median latency in ms of one image, as verify.py takes it. */
async function latencyOf(logits, x) {
    const times = [], warmup = 5;
    for (let k = 0, begin = 0; k < warmup + 20 || performance.now() - begin < 1000; k++) {
        if (k === warmup) begin = performance.now();
        const start = performance.now();
        await logits(x);
        if (k >= warmup) times.push(performance.now() - start);
    }
    return median(times);
}

/** Which images are right, as 0 or 1, by set and under Square; share of label flips; change of logits; latency. */
async function measure({ manifest, suite, model }, runtime, { queries, seed, onStep }) {
    const logits = logitsOf(await openSession({ manifest, model }, runtime), runtime, manifest);
    const y = suite.y.data, { classes, threat, square, limits } = manifest, right = {}, flips = [];
    const shape = imageShape(manifest), size = shape.reduce((a, b) => a * b, 1);
    let change = 0;
    for (const name of Object.keys(manifest.reference)) {
        const found = await logits(toFloat(suite[`x.${name}`].data)), labels = labelsOf(found, classes.length);
        if (name === 'clean') change = logitChange(found, suite['logits.clean'].data, classes.length);
        flips.push(mean(labels.map((label, k) => Number(label !== suite[`label.${name}`].data[k]))));
        right[name] = labels.map((label, k) => Number(label === y[k]));
    }
    const n = Math.min(square.n, y.length), step = Math.max(Math.min(n, Math.floor(MAX_PIXELS / size)), 1);
    const how = { shape, eps: threat.eps, queries, seed, norm: threat.norm, whole: manifest.input.dtype === 'uint8', onStep };
    right.square = [];
    for (let at = 0; at < n; at += step) {
        const end = Math.min(at + step, n), x = toFloat(suite['x.clean'].data.subarray(at * size, end * size));
        right.square.push(...Array.from(await squareAttack(logits, x, y.slice(at, end), how), broken => 1 - broken));
    }
    const first = toFloat(suite['x.clean'].data.subarray(0, size));
    const latency = (limits.latency_ms ?? null) === null ? 0 : await latencyOf(logits, first);
    return { right, flips: mean(flips), change, latency };
}

// Verdicts

const parityOf = manifest => manifest.parity === 'none' ? 'none' : 'torch';
const worstOf = (right, names, n) => Array.from({ length: n }, (_, k) => Number(names.every(name => right[name][k] ?? 1)));

/** Verdicts that need no statistics: what they measure is a fact of this file on these images and this device. */
function factsOf({ manifest, model }, { right, flips, change, latency }) {
    const { limits, reference } = manifest, clean = mean(right.clean), square = mean(right.square);
    const stored = mean(worstOf(right, Object.keys(reference), right.square.length));
    const origin = ORIGINS[parityOf(manifest)], size = model.length;
    return [
        ['label_flips', flips, `${percent(flips, 2)} of labels differ from those of ${origin}`, HINTS.export],
        ['logit_change', change, `logits of the median image moved by ${general(change, 2)} of their length`, HINTS.export],
        ['accuracy_drop', reference.clean - clean,
            `accuracy ${percent(clean, 2)} after export, ${percent(reference.clean, 2)} before`, HINTS.export],
        ['square_gap', stored - square,
            `accuracy ${percent(square, 2)} under Square, ${percent(stored, 2)} when replayed`, HINTS.masked],
        ['latency_ms', latency, `median of ${latency.toFixed(3)} ms for one image`, HINTS.device],
        ['size_bytes', size, `model.onnx of ${size} bytes`, HINTS.device],
    ].filter(([name]) => (limits[name] ?? null) !== null).map(([name, measured, reason, hint]) => ({
        // 0.75 - 0.73 > 0.02 in floating point; a limit that is met exactly has held.
        name, passed: measured <= limits[name] + 1e-9, measured, limit: limits[name], reason, hint,
        ci95: null, p_value: null, needed: 0,
    }));
}

/** Verdicts on each set of `reference`, image by image: is the drop larger than tolerated, beyond luck? */
function testsOf(right, reference, { statistics, limits }, hint) {
    const level = statistics.alpha / Object.keys(reference).length;
    const rows = Object.entries(reference).map(([name, before]) => {
        const count = valid => before.filter((hit, k) => valid(hit, right[name][k])).length;
        const [lost, gained] = [count((was, is) => was && !is), count((was, is) => !was && is)];
        return { name, lost, gained, n: before.length, limit: limits[name === 'clean' ? 'accuracy_drop' : 'robust_drop'] };
    });
    const test = TESTS[statistics.test];
    const values = holm(rows.map(({ lost, gained, n, limit }) => test(lost, gained, n, limit, level)));
    return rows.map(({ name, lost, gained, n, limit }, k) => {
        const drop = (lost - gained) / n, ci95 = pairedInterval(lost, gained, n), p = values[k];
        const bounds = ci95.map(end => percent(end)).join(' to ');
        const reason = `drop ${percent(drop)} (${bounds}), lost ${lost}, gained ${gained}, `
            + `tolerated ${percent(limit)}, p ${general(p, 2)}`;
        const needed = imagesNeeded(statistics.detected_drop, limit, gained / n, level, statistics.power);
        return { name: `${name} accuracy`, passed: p > statistics.alpha, measured: drop, limit, reason, hint, ci95, p_value: p, needed };
    });
}

/** By set whose attack has parts, the wrong images by part, most first. */
function foundBy(suite, right) {
    const found = {};
    for (const name of Object.keys(right)) {
        const rows = suite[`found_by.${name}`], counts = new Map();
        if (!rows) continue;
        right[name].forEach((hit, k) => {
            const row = rows.data.subarray(k * rows.shape[1], (k + 1) * rows.shape[1]);
            const part = new TextDecoder().decode(row).replace(/\0+$/, '');
            if (!hit) counts.set(part, (counts.get(part) ?? 0) + 1);
        });
        found[name] = Object.fromEntries([...counts].sort((a, b) => b[1] - a[1]));
    }
    return found;
}

// Baselines

/** What a baseline pins beside outcomes; the generator is Square's, which verify.py does not have. */
function policyOf({ limits, statistics, square, classes, target, threat }) {
    return {
        limits, statistics, square: { ...square, generator: GENERATOR }, classes,
        target: { name: target.name, provider: target.provider, session_options: target.session_options },
        threat: { norm: threat.norm, eps: threat.eps },
    };
}

function flat(table, above = '') {
    return Object.entries(table).reduce((all, [key, value]) =>
        isTable(value) ? { ...all, ...flat(value, `${above}${key}.`) } : { ...all, [above + key]: value }, {});
}

const packed = hits => hex(Array.from({ length: Math.ceil(hits.length / 8) }, (_, byte) =>
    hits.slice(byte * 8, byte * 8 + 8).reduce((bits, hit, k) => bits | hit << 7 - k, 0)));

const unpacked = (text, count) => Array.from({ length: count }, (_, k) =>
    parseInt(text.slice((k >> 3) * 2, (k >> 3) * 2 + 2), 16) >> 7 - k % 8 & 1);

/**
 * Outcomes pinned in a baseline { name, bytes }, whether its suite is this one, its test, which applies, and whether
 * its Square is comparable: verify.py draws other squares, so that a baseline of its serves replayed sets alone.
 */
function readBaseline({ name, bytes }, { model, suite, ...now }) {
    const again = `pin again by ${UPDATE}`, restore = `restore what was pinned, or pin anew by ${UPDATE}`;
    let pinned;
    try {
        pinned = readJson(bytes);
        const version = pinned.schema_version;
        expect(version === 2, `a baseline of schema_version 2 in ${name}`, version, version === 1 ? again : `upgrade qrobust, or ${again}`);
        const was = flat(Object.fromEntries(Object.keys(now).map(key => [key, pinned[key]]))), is = flat(now);
        const test = pinned.policy.statistics.test, comparable = 'policy.square.generator' in was;
        expect(Object.hasOwn(TESTS, test), `a test out of ${Object.keys(TESTS)} in ${name}`, test, `upgrade qrobust, or ${again}`);
        is['policy.statistics.test'] = test; // the pinned one applies, whichever a later export names
        if (!comparable) delete is['policy.square.generator'];
        for (const key of new Set([...Object.keys(is), ...Object.keys(was)])) {
            const expected = was[key] === undefined ? 'nothing' : was[key];
            expect(same(was[key], is[key]), `${key.replace('policy.', '')} ${shown(expected)}, as ${name} pins it`,
                is[key] ?? 'nothing', restore);
        }
        const digests = [pinned.model, pinned.suite].every(digest => /^[0-9a-f]{64}$/.test(digest));
        expect(digests, `sha256 of model and suite in ${name}`, [pinned.model, pinned.suite]);
        const valid = pinned.suite === suite || pinned.model !== model;
        expect(valid, `the suite that ${name} pins for this model.onnx`, 'another suite.npz', restore);
        const outcomes = entries(Object.keys(now.counts), set => {
            const hits = unpacked(pinned.outcomes[set], now.counts[set]);
            expect(Math.abs(mean(hits) - pinned.accuracy[set]) < 1e-9,
                `outcomes of ${set} in ${name} that are right in ${pinned.accuracy[set]}`, mean(hits));
            return hits;
        });
        if (!comparable) delete outcomes.square;
        return { outcomes, sameSuite: pinned.suite === suite, test, comparable };
    } catch (error) {
        if (error instanceof ArtifactError) throw error;
        return expect(false, `a baseline in ${name}`, error.message, `give the baseline of these images, or pin one by ${UPDATE}`);
    }
}

/** Before a baseline is pinned: on fewer images every check against it would end without a verdict. */
export function expectPower({ manifest: { statistics, limits, reference, square }, suite }) {
    const n = suite.y.shape[0], names = [...Object.keys(reference), 'square'];
    for (const name of names) {
        const limit = limits[name === 'clean' ? 'accuracy_drop' : 'robust_drop'];
        const count = name === 'square' ? Math.min(square.n, n) : n;
        const needed = imagesNeeded(statistics.detected_drop, limit, 0, statistics.alpha / names.length, statistics.power);
        expect(count >= needed, `${needed} images or more for a baseline of ${name} with the power asked for`, count,
            'export a larger suite, or raise detected_drop');
    }
}

/**
 * The report of an artifact, with the keys of verify.py's and `notes`, lines for people. runtime: { ort, kind: "node" or
 * "web", saturates: whether sums of 8-bit products may, versions }; baseline: { name, bytes } or null.
 */
export async function check(artifact, runtime, { baseline = null, queries = null, seed = 0, onStep } = {}) {
    const start = performance.now(), { suite, model } = artifact, sets = Object.keys(artifact.manifest.reference);
    const y = suite.y.data, budget = queries ?? artifact.manifest.square.queries;
    const valid = Number.isInteger(budget) && budget >= 50 && budget <= 10 ** 6 && Number.isSafeInteger(seed) && seed >= 0;
    expect(valid, '50 to 1000000 queries for Square and a seed of 0 or more', [budget, seed], 'change --queries or --seed');
    const counts = { ...entries(sets, () => y.length), square: Math.min(artifact.manifest.square.n, y.length) };
    const labels = new Uint8Array(BigInt64Array.from(y, BigInt).buffer), clean = suite['x.clean'].data;
    const images = new Uint8Array(clean.length + labels.length);
    images.set(clean);
    images.set(labels, clean.length);
    const now = { images: await sha256(images), queries: budget, seed, counts, policy: policyOf(artifact.manifest) };
    const digests = { model: artifact.manifest.files['model.onnx'].sha256, suite: artifact.manifest.files['suite.npz'].sha256 };
    const pinned = baseline && readBaseline(baseline, { ...now, ...digests });
    const statistics = { ...artifact.manifest.statistics, ...(pinned && { test: pinned.test }) };
    const manifest = { ...artifact.manifest, statistics };
    const before = entries(sets, name => Array.from(suite[`label.${name}`].data, (label, k) => Number(label === y[k])));
    const reference = pinned?.outcomes ?? before, { clean: _, ...attacked } = before;
    const found = await measure({ manifest, suite, model }, runtime, { queries: budget, seed, onStep }), { right } = found;
    const tests = testsOf(right, pinned ? reference : attacked, manifest, pinned ? HINTS.lost : HINTS.export);
    const verdicts = [...factsOf({ manifest, model }, found), ...tests], names = Object.keys(right);
    const passed = verdicts.every(verdict => verdict.passed), level = manifest.target.session_options.graph_optimization_level;
    for (const { name, needed } of passed ? tests : []) {
        const n = counts[name.replace(/ accuracy$/, '')];
        expect(n >= needed, `${needed} images or more for a test of ${name} with the power asked for`, n,
            'export a larger suite, or raise detected_drop');
    }
    return {
        passed, artifact: manifest.name, verdicts,
        accuracy: entries(names, name => mean(right[name])),
        ci95: entries(names, name => wilson(right[name].reduce((a, b) => a + b, 0), right[name].length)),
        counts, reference: entries(Object.keys(reference), name => mean(reference[name])),
        baseline: baseline?.name ?? null, same_suite: pinned?.sameSuite ?? true, statistics,
        policy: policyOf(manifest), worst_case: mean(worstOf(right, names, y.length)), found_by: foundBy(suite, right),
        label_flips: found.flips, n: y.length, queries: budget, seed, eps: manifest.threat.eps, images: now.images,
        ...digests, session: `${manifest.target.provider}, ${level ?? 'all'}`, parity: parityOf(manifest),
        outcomes: entries(names, name => packed(right[name])), seconds: (performance.now() - start) / 1000,
        versions: runtime.versions, origin: ORIGINS[parityOf(manifest)],
        notes: pinned && !pinned.comparable
            ? [`Square is not compared with ${baseline.name}: its draws are another generator's; pin one by ${UPDATE}.`] : [],
    };
}
