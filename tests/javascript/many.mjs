// For tests and benches: several checks in one process, and the tests' numbers. Reads JSON, writes JSON.
//
//     node many.mjs VERIFIER < [[ARGUMENTS of verify.mjs], ...]      -> [[exit code, stdout, stderr], ...]
//     node many.mjs VERIFIER numbers < [[lost, gained, n, tolerated, level], ...]
import { readFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';

const [folder, what] = process.argv.slice(2), asked = JSON.parse(readFileSync(0));
const module = name => import(pathToFileURL(`${folder}/${name}`));
const print = value => process.stdout.write(JSON.stringify(value));

if (what === 'numbers') {
    const { TESTS, dropScore, imagesNeeded, normalQuantile, pairedInterval, wilson } = await module('verify-tests.mjs');
    print(asked.map(([lost, gained, n, tolerated, level]) => [
        ...Object.values(TESTS).map(test => test(lost, gained, n, tolerated, level)), dropScore(lost, gained, n, tolerated),
        ...wilson(lost, n), ...pairedInterval(lost, gained, n), normalQuantile(level),
        imagesNeeded(tolerated + 0.07, tolerated, gained / n, level, 0.8),
    ]));
} else {
    const { main } = await module('verify.mjs'), ended = [];
    const streams = [process.stdout, process.stderr], write = streams.map(stream => stream.write);
    for (const argv of asked) {
        const texts = ['', ''];
        streams.forEach((stream, k) => { stream.write = text => { texts[k] += text; return true; }; });
        const code = await main(argv);
        streams.forEach((stream, k) => { stream.write = write[k]; });
        ended.push([code, ...texts]);
    }
    print(ended);
}
