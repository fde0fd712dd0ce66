#!/usr/bin/env node
// Load an exported artifact, replay its robustness suite, attack it without gradients, and give a verdict, in Node.
//
//     node verify.mjs [ARTIFACT] [--baseline F]     0: every limit held, 1: a limit was broken, 2: it could not run
//
// Needs Node 20 and onnxruntime-node, or onnxruntime-web for its WASM build. Browsers take verify.html.
import { spawn } from 'node:child_process';
import { appendFile, mkdir, open, readFile, readdir, realpath, rename, rm, stat } from 'node:fs/promises';
import { createRequire } from 'node:module';
import path from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import util from 'node:util';

// Node's own exit code would be 1 where a file is missing, which says that a limit was broken.
const [checks, files, reports] = await Promise.all(['check', 'files', 'report'].map(name => import(`./verify-${name}.mjs`)))
    .catch(error => {
        const why = String(error.message).split('\n')[0];
        process.stderr.write(`error: expected verify-*.mjs beside verify.mjs, got ${why}; export the artifact again\n`);
        process.exit(2);
    });
const { check, expectPower } = checks, { formatReport, formatted } = reports;
const { ArtifactError, expect, expecting, loadArtifact, oneLine } = files;

const OWN = fileURLToPath(import.meta.url);
// Of the process that a check runs in; codes that no crash ends with stand for 0, 1, 2.
const INSIDE = '--inside', CODES = { 64: 0, 65: 1, 66: 2 }, KINDS = ['json', 'junit', 'markdown', 'baseline'];
const HELP = `usage: node verify.mjs [ARTIFACT] [options]     0: every limit held, 1: a limit was broken, 2: it could not run

ARTIFACT               its folder; left out: where this file is
--baseline F           compare with the outcomes and limits pinned in F
--update-baseline      pin the outcomes and limits instead
--reason TEXT          why the baseline changes
--json F               write the result to F as json; -: print it; so --junit and --markdown
--queries N            queries per image for Square
--seed N               seed of Square
--timeout S            end a check after S seconds
--runtime node|web     onnxruntime-node, or onnxruntime-web's WASM; left out: the first that is installed`;

function options(argv) {
    const text = { type: 'string' }, flag = { type: 'boolean' };
    const known = { ...Object.fromEntries(KINDS.map(kind => [kind, text])), reason: text, queries: text, seed: text,
        timeout: text, runtime: text, 'update-baseline': flag, help: { ...flag, short: 'h' } };
    try {
        const { values, positionals } = util.parseArgs({ args: argv, options: known, allowPositionals: true });
        const files = Object.entries({ ...values, artifact: positionals[0] ?? path.dirname(OWN) })
            .filter(([name]) => [...KINDS, 'artifact'].includes(name));
        if (positionals.length > 1) throw new Error(`unrecognized arguments: ${positionals.slice(1).join(' ')}`);
        for (const [name, file] of files) if (!file.trim()) throw new Error(`argument ${name}: an empty file name`);
        for (const name of ['queries', 'seed', 'timeout']) {
            const valid = (name === 'timeout' ? /^(\d+\.?\d*|\.\d+)$/ : /^-?\d+$/).test(values[name] ?? '0');
            if (!valid) throw new Error(`argument --${name}: no number: ${values[name]}`);
        }
        if (!['node', 'web', undefined].includes(values.runtime)) throw new Error(`argument --runtime: ${values.runtime}`);
        const number = (name, fallback) => values[name] === undefined ? fallback : Number(values[name]);
        const timeout = number('timeout', 3600);
        expect(timeout > 0 && timeout < 1e6, '--timeout above 0', timeout, 'raise it');
        return { ...values, ...Object.fromEntries(files.map(([name, file]) => [name, file === '/dev/stdout' ? '-' : file])),
            timeout, queries: number('queries', null), seed: number('seed', 0), reason: values.reason ?? '' };
    } catch (error) {
        if (error instanceof ArtifactError) throw error;
        const why = error.message.split('\n')[0];
        return expect(false, 'arguments as --help lists them', why, 'mend the command');
    }
}

/** Say in one line why there is no verdict; returns exit code 2. */
function refused(error) {
    const got = `${error?.name}: ${oneLine(error?.message ?? error)}`;
    const line = error instanceof ArtifactError ? error.message : `expected a check to the end, got ${got}; check again`;
    process.stderr.write(`error: ${line}\n`);
    return 2;
}

/** The check in a process of its own, which is ended in time; returns 0, 1 or 2, whatever ends it. */
async function apart(argv) {
    const chosen = options(argv);
    if (chosen.help) return process.stdout.write(`${HELP}\n`), 0;
    const environment = { ...process.env }, cleared = Object.keys(environment).filter(name => name.startsWith('ORT_')).sort();
    for (const name of cleared) delete environment[name]; // they change sessions, write files and load libraries
    if (cleared.length) process.stderr.write(`note: a check does not pass on ${cleared.join(', ')}\n`);
    const stdio = ['inherit', 'inherit', 'inherit', 'ipc'];
    const child = spawn(process.execPath, [...process.execArgv, OWN, INSIDE, ...argv], { env: environment, stdio });
    let late = false;
    const timer = setTimeout(() => { late = true; child.kill('SIGKILL'); }, chosen.timeout * 1000);
    for (const name of ['SIGINT', 'SIGTERM']) process.once(name, () => child.kill('SIGKILL'));
    const [code, signal] = await new Promise((resolve, reject) => {
        child.on('error', reject);
        child.on('exit', (...end) => resolve(end));
    }).finally(() => clearTimeout(timer));
    expect(!late, `a check within ${chosen.timeout} s`, 'none', 'raise --timeout, or mend the model');
    expect(code in CODES, 'a check that ends by itself', signal ?? `exit code ${code}`, 'free memory, or mend the model');
    return CODES[code];
}

// onnxruntime

/** A package from the current folder's node_modules or those beside this file; null where it is in neither. */
async function imported(name) {
    for (const from of [path.join(process.cwd(), 'x.mjs'), OWN]) {
        let found;
        try {
            found = createRequire(from).resolve(name);
        } catch { continue; }
        const module = await expecting(`${name} to start`, () => import(pathToFileURL(found)), 'install it again');
        return { ...module, ...module.default };
    }
    return null;
}

/** Whether sums of 8-bit products may saturate: on x64 without VNNI, or x64 that cannot be asked. */
async function saturates() {
    if (process.arch !== 'x64') return false;
    const text = await readFile('/proc/cpuinfo', 'latin1').catch(() => ''), lines = text.match(/^flags.*$/gm) ?? [];
    return !lines.length || lines.some(line => !/\bavx(512)?_vnni\b/.test(line));
}

async function runtimeOf(wanted) {
    for (const kind of wanted ? [wanted] : ['node', 'web']) {
        const name = `onnxruntime-${kind}`, ort = await imported(name);
        if (!ort) continue;
        if (kind === 'web') ort.env.wasm.numThreads = 1;
        const versions = { node: process.versions.node, [name]: ort.env.versions[kind] ?? ort.env.versions.common };
        return { ort, kind, saturates: kind === 'node' && await saturates(), versions };
    }
    const name = wanted ? `onnxruntime-${wanted}` : 'onnxruntime-node or onnxruntime-web';
    return expect(false, name, 'none', `npm install --ignore-scripts onnxruntime-${wanted ?? 'node'}`);
}

// Files

/** The bytes of a file, null where there is none; no more than `most`. */
async function readWhole(file, most) {
    const found = await stat(file).catch(() => null);
    if (!found?.isFile()) return null;
    expect(found.size <= most, `${file} of up to ${most} bytes`, found.size);
    return new Uint8Array(await readFile(file));
}

const folder = place => ({
    name: place,
    read: (name, most) => readWhole(path.join(place, name), most),
    list: async () => (await readdir(place, { withFileTypes: true }).catch(() => []))
        .map(entry => entry.isDirectory() ? `${entry.name}/` : entry.name),
});

/** Where a path leads to, through links, whether or not there is a file yet. */
async function placeOf(file) {
    const whole = path.resolve(file);
    return realpath(whole).catch(async () => path.join(await realpath(path.dirname(whole)).catch(() => path.dirname(whole)), path.basename(whole)));
}

/** Before the work: every result has a file of its own, which no check reads. */
async function expectPlaces(chosen) {
    const taken = new Set(), own = await placeOf(chosen.artifact);
    for (const kind of KINDS.filter(kind => chosen[kind])) {
        const file = chosen[kind], place = await placeOf(file), remedy = `change --${kind}`;
        expect(kind !== 'baseline' || file !== '-', 'a file as --baseline', '-', 'name one');
        expect(!taken.has(place), 'another file for each result', file, remedy);
        const outside = file === '-' || (place !== own && !place.startsWith(own + path.sep));
        expect(outside, 'a place outside of the artifact, which holds its own files alone', file, remedy);
        expect(!(await stat(place).catch(() => null))?.isDirectory(), `a file as --${kind}`, `${file}, a folder`, 'name a file in it');
        taken.add(place);
    }
}

/** Write a file whole, where a link leads to; what is no file of a disk, as a pipe, is written through. */
async function write(file, text) {
    const found = await stat(file).catch(() => null);
    if (found && !found.isFile()) return appendFile(file, text);
    const place = await placeOf(file), partial = path.join(path.dirname(place), `.check-${process.pid}-${Date.now()}`);
    await mkdir(path.dirname(place), { recursive: true });
    const handle = await open(partial, 'wx', found ? found.mode & 0o777 : 0o666); // a name that nobody can lay a link at
    try {
        await handle.writeFile(text);
        await handle.sync();
        await handle.close();
        return await rename(partial, place); // a reader finds the old result or the new one, never half
    } catch (error) {
        await rm(partial, { force: true });
        throw error;
    }
}

/** Print a report and write it, each file whole; returns the exit code, 0 or 1. */
async function conclude(report, chosen, reason) {
    const texts = formatted(report, reason), wanted = KINDS.filter(kind => chosen[kind] && (kind !== 'baseline' || report.passed));
    const printed = wanted.filter(kind => chosen[kind] === '-');
    (printed.length ? process.stderr : process.stdout).write(`${formatReport(report)}\n`);
    for (const kind of wanted) {
        const text = `${texts[kind].trimEnd()}\n`;
        if (printed.includes(kind)) process.stdout.write(text);
        else await expecting(`a writable place for ${chosen[kind]}`, () => write(chosen[kind], text), 'choose another one');
    }
    return report.passed ? 0 : 1;
}

function meter(done, total) {
    if (process.stderr.isTTY) process.stderr.write(done === total ? '\r\x1b[K' : `\rcheck: ${done} of ${total} queries\x1b[K`);
}

async function inside(argv) {
    const chosen = options(argv), update = Boolean(chosen['update-baseline']);
    await expectPlaces(chosen);
    const artifact = await loadArtifact(folder(chosen.artifact));
    if (update) expectPower(artifact);
    expect(update === Boolean(chosen.reason.trim()), '--update-baseline and --reason TEXT', 'one of them', 'give both');
    const name = artifact.manifest.name.replace(/[^\p{L}\p{N}\-_.]/gu, '-').replace(/^\.+/, '') || 'baseline';
    const pin = update ? chosen.baseline ?? path.join('export', 'baselines', `${name}.json`) : null;
    const pinned = !update && chosen.baseline ? await readWhole(chosen.baseline, 2 ** 24) : null;
    expect(update || !chosen.baseline || pinned, `a baseline at ${chosen.baseline}`, 'no file', 'pin one by --update-baseline --reason TEXT');
    const { queries, seed } = chosen, baseline = pinned && { name: chosen.baseline, bytes: pinned };
    const report = await check(artifact, await runtimeOf(chosen.runtime), { baseline, queries, seed, onStep: meter });
    return conclude(report, { ...chosen, baseline: pin }, chosen.reason);
}

/** `verify.mjs ARGUMENTS` in this process, but for its time limit; returns the exit code 0, 1 or 2. */
export const main = argv => inside(argv).catch(refused);

if (process.argv[1] && await realpath(process.argv[1]).catch(() => '') === await realpath(OWN)) {
    const argv = process.argv.slice(2);
    if (argv[0] === INSIDE) {
        process.on('disconnect', () => process.exit(66)); // its parent is gone
        process.channel?.unref();
        const code = await main(argv.slice(1));
        process.exitCode = Number(Object.keys(CODES).find(key => CODES[key] === code));
    } else process.exitCode = await apart(argv).catch(refused);
}
