// What a check found, for people and for other programs: the texts of verify.py.
import { oneLine } from './verify-files.mjs';

const NO_PARITY = 'Parity: none. No torch network is known; labels and logits are compared with its own session then.';
const NOTE = `Replayed examples were made before export: they can only overestimate robustness.
Square runs on this session, without gradients; a stronger attack may find more.`;

/** Digits behind the point as Python rounds them: a half that is exact goes to the even side. */
function fixed(value, digits) {
    const exact = Math.abs(value).toFixed(Math.min(digits + 60, 100)), cut = exact.indexOf('.') + 1 + digits;
    const even = Number(exact[cut - 1] === '.' ? exact[cut - 2] : exact[cut - 1]) % 2 === 0;
    const half = /^50*$/.test(exact.slice(exact.indexOf('.') + 1 + digits));
    const text = half && even ? exact.slice(0, digits ? cut : cut - 1) : Math.abs(value).toFixed(digits);
    return value < 0 ? `-${text}` : text;
}

export const percent = (share, digits = 1) => `${fixed(share * 100, digits)}%`;

/** Significant digits, as Python's format code g writes them. */
export function general(value, digits) {
    const [mantissa, power] = value.toExponential(digits - 1).split('e').map(Number);
    if (value !== 0 && (power < -4 || power >= digits))
        return `${mantissa}e${power < 0 ? '-' : '+'}${String(Math.abs(power)).padStart(2, '0')}`;
    return String(Number(value.toPrecision(digits)));
}

/** The report as a table for people; the last line is `held` or `broken`. */
export function formatReport(report) {
    const tests = Object.fromEntries(report.verdicts.map(({ name, reason }) => [name, reason]));
    const lines = [`${report.artifact}: ${report.n} images, Square with ${report.queries} queries, seed ${report.seed}`];
    const row = (name, n, accuracy, interval, reference, test) => lines.push(name.padEnd(16) + String(n).padStart(6)
        + accuracy.padStart(10) + interval.padStart(17) + reference.padStart(11) + `  ${test}`);
    row('set', 'n', 'accuracy', '95 % interval', 'reference', 'image by image');
    for (const [name, accuracy] of Object.entries(report.accuracy)) {
        const before = report.reference[name], interval = report.ci95[name].map(end => percent(end)).join(' to ');
        row(name, report.counts[name], percent(accuracy), interval, before === undefined ? '-' : percent(before),
            tests[`${name} accuracy`] ?? '-');
    }
    for (const [name, counts] of Object.entries(report.found_by)) {
        const parts = Object.entries(counts).map(([part, count]) => `${part} ${count}`);
        lines.push(`Wrong under ${name}, by what found them: ${parts.join('; ')}`);
    }
    const { alpha, power, detected_drop: drop } = report.statistics;
    const against = report.baseline === null ? report.origin : oneLine(report.baseline);
    lines.push('worst case'.padEnd(16) + String(report.n).padStart(6) + percent(report.worst_case).padStart(10));
    lines.push(`Tested against ${against}, at alpha ${general(alpha, 2)}, with power ${percent(power, 0)} for a drop of `
        + `${percent(drop)}.${report.same_suite ? '' : ' Its adversarial images were made against another network.'}`);
    lines.push(NOTE, ...(report.parity === 'none' ? [NO_PARITY] : []), ...report.notes.map(oneLine));
    for (const { name, reason, hint } of report.verdicts.filter(verdict => !verdict.passed))
        lines.push(`broken ${name}: ${reason}; ${hint}`);
    return [...lines, report.passed ? 'held' : 'broken'].join('\n');
}

const ENTITIES = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' };
const quoted = text => `"${text.replace(/[&<>"]/g, letter => ENTITIES[letter])}"`;

/** The report as JUnit XML: one test case a verdict. */
export function formatJunit(report) {
    const cases = report.verdicts.map(({ name, passed, reason, hint }) => {
        const failure = passed ? '' : `<failure message=${quoted(`${reason}; ${hint}`)}/>`;
        return `<testcase classname=${quoted(report.artifact)} name=${quoted(name)}>${failure}</testcase>\n`;
    });
    const broken = report.verdicts.filter(verdict => !verdict.passed).length;
    const counts = `tests="${cases.length}" failures="${broken}" errors="0" time="${report.seconds.toFixed(3)}"`;
    return `<?xml version="1.0" encoding="UTF-8"?>\n<testsuite name="qrobust check" ${counts}>\n${cases.join('')}</testsuite>\n`;
}

const PINNED = ['artifact', 'model', 'suite', 'images', 'queries', 'seed', 'counts', 'policy', 'accuracy', 'outcomes', 'versions'];

/** The texts of a report by option: "json", "junit", "markdown", "baseline". */
export function formatted(report, reason = '') {
    const { origin: _, ...result } = report, lines = formatReport(report).split('\n');
    const pinned = { schema_version: 2, reason, ...Object.fromEntries(PINNED.map(key => [key, report[key]])) };
    return {
        json: JSON.stringify(result, null, 2), junit: formatJunit(report),
        // An indented block is one that no name inside can close.
        markdown: `### qrobust check\n\n${lines.map(line => `    ${line}\n`).join('')}`,
        baseline: JSON.stringify(pinned, null, 2),
    };
}
