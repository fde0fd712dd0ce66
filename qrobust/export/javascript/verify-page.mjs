// The check in a browser, for verify.html: ?artifact= its folder, ?ort= where onnxruntime-web is, or one file of it;
// ?baseline=, ?queries=, ?seed= as the options of verify.py. All of them are looked for on the page's own host.
import { check } from './verify-check.mjs';
import { ArtifactError, expect, expecting, loadArtifact, oneLine } from './verify-files.mjs';
import { formatReport, formatted, percent } from './verify-report.mjs';

const ORT = '../node_modules/onnxruntime-web/dist/', at = id => document.getElementById(id);
const BUILDS = { CPUExecutionProvider: 'ort.wasm.min.mjs', WebGpuExecutionProvider: 'ort.webgpu.min.mjs' };

/** An address on this page's host; a link to the page must not bring in a stranger's code or files. */
function near(text) {
    const url = new URL(text, document.baseURI);
    expect(url.origin === location.origin, `an address on ${location.origin}`, text, 'serve it from there');
    return url;
}

async function fetched(url, most) {
    const answer = await expecting(`${url.pathname} from the server`, () => fetch(url, { cache: 'no-store' }), 'serve it');
    if (answer.status === 404) return null;
    expect(answer.ok, `${url.pathname} from the server`, `status ${answer.status}`, 'serve it');
    const size = Number(answer.headers.get('content-length') ?? 0);
    expect(size <= most, `${url.pathname} of up to ${most} bytes`, size);
    return new Uint8Array(await answer.arrayBuffer());
}

function folder(text) {
    const base = near(text.endsWith('/') ? text : `${text}/`);
    return { name: base.pathname, read: (name, most) => fetched(new URL(encodeURIComponent(name), base), most), list: () => null };
}

/** onnxruntime-web in the build of a provider, or the one that was named. */
async function runtimeOf(provider, place) {
    const build = BUILDS[provider];
    expect(build, `a provider out of ${Object.keys(BUILDS).join(', ')}`, provider, 'check it by verify.py or verify.mjs');
    const named = place ?? ORT, url = near(named.endsWith('.mjs') ? named : `${named.replace(/\/?$/, '/')}${build}`);
    const remedy = 'npm install --ignore-scripts onnxruntime-web beside the artifact and serve the folder of both, or name ?ort=';
    const module = await expecting(`onnxruntime-web at ${url.pathname}`, () => import(url), remedy);
    const ort = { ...module.default, ...module };
    ort.env.wasm.numThreads = 1; // more need headers of the server that isolate the page
    ort.env.logLevel = 'fatal';
    const versions = { browser: navigator.userAgent, 'onnxruntime-web': ort.env.versions.web ?? ort.env.versions.common };
    return { ort, kind: 'web', saturates: false, versions: { ...versions, build: url.pathname.split('/').at(-1) } };
}

function whole(text, name) {
    if (text === null) return null;
    expect(/^\d+$/.test(text), `a whole number as ?${name}=`, text, 'mend the address');
    return Number(text);
}

async function checked(asked) {
    const artifact = await loadArtifact(folder(asked.get('artifact') ?? './'));
    at('title').textContent = artifact.manifest.name;
    const name = asked.get('baseline'), pinned = name && await fetched(near(name), 2 ** 24);
    expect(pinned || !name, `a baseline at ${name}`, 'no file', 'mend the address');
    const runtime = await runtimeOf(artifact.manifest.target.provider, asked.get('ort')), bar = document.querySelector('progress');
    at('verdict').querySelector('span').textContent = 'Square attacks the session';
    const onStep = (done, total) => {
        bar.value = done / total;
        return new Promise(resolve => setTimeout(resolve)); // else the page would not be painted
    };
    const [queries, seed] = ['queries', 'seed'].map(key => whole(asked.get(key), key));
    return check(artifact, runtime, { baseline: pinned && { name, bytes: pinned }, queries, seed: seed ?? 0, onStep });
}

// What is shown

function table(id, heads, rows) {
    const built = document.createElement('table');
    for (const [k, cells] of [heads, ...rows].entries()) {
        const row = built.insertRow();
        for (const [text, kind] of cells) {
            const cell = row.appendChild(document.createElement(k ? 'td' : 'th'));
            cell.textContent = text;
            cell.className = kind ?? '';
        }
    }
    at(id).replaceChildren(built);
    at(id).hidden = false;
}

function show(report) {
    const interval = name => report.ci95[name].map(end => percent(end)).join(' to ');
    const before = name => report.reference[name] === undefined ? '–' : percent(report.reference[name]);
    table('sets', [['set'], ['n', 'number'], ['accuracy', 'number'], ['95 % interval', 'number'], ['reference', 'number']],
        Object.entries(report.accuracy).map(([name, share]) => [[name], [report.counts[name], 'number'],
            [percent(share), 'number'], [interval(name), 'number'], [before(name), 'number']]));
    table('limits', [['limit'], [''], ['measured']], report.verdicts.map(({ name, passed, reason, hint }) =>
        [[name], [passed ? 'held' : 'broken', passed ? 'held' : 'broken'], [passed ? reason : `${reason}; ${hint}`]]));
    at('text').querySelector('pre').textContent = formatReport(report);
    at('text').querySelector('a').href = URL.createObjectURL(new Blob([formatted(report).json], { type: 'application/json' }));
    at('text').hidden = false;
}

/** The verdict in the page, its title and `document.body.dataset`, for people and for programs: exit 0, 1 or 2. */
function say(exit, word, text) {
    at('verdict').className = word;
    at('verdict').replaceChildren(`${word} `, Object.assign(document.createElement('span'), { textContent: text }));
    document.title = `${word} · ${at('title').textContent}`;
    document.body.dataset.exit = exit;
}

try {
    const report = await checked(new URLSearchParams(location.search));
    const broken = report.verdicts.filter(verdict => !verdict.passed).map(verdict => verdict.name);
    const build = Object.values(report.versions).at(-1);
    show(report);
    say(report.passed ? 0 : 1, report.passed ? 'held' : 'broken',
        `${broken.length ? `${broken.join(', ')} · ` : ''}${report.session} · ${build} · ${report.seconds.toFixed(1)} s`);
} catch (error) {
    const line = error instanceof ArtifactError ? error.message
        : `expected a check to the end, got ${oneLine(`${error?.name}: ${error?.message ?? error}`)}; check again`;
    say(2, 'refused', line);
}
at('progress').hidden = true;
