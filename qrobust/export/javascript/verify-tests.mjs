// What a check computes: intervals and tests as verify.py has them, and the Square attack. Needs nothing but JavaScript.

const sum = values => values.reduce((total, value) => total + value, 0);

// Wichura's AS 241 (1988, Applied Statistics 37:477): numerator and denominator, highest power first, by region.
const CENTRE = [
    [2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457, 13731.693765509461125,
        1971.5909503065514427, 133.14166789178437745, 3.387132872796366608],
    [5226.495278852854561, 28729.085735721942674, 39307.89580009271061, 21213.794301586595867, 5394.1960214247511077,
        687.1870074920579083, 42.313330701600911252, 1],
];
const NEAR = [
    [7.7454501427834140764e-4, 0.0227238449892691845833, 0.24178072517745061177, 1.27045825245236838258,
        3.64784832476320460504, 5.7694972214606914055, 4.6303378461565452959, 1.42343711074968357734],
    [1.05075007164441684324e-9, 5.475938084995344946e-4, 0.0151986665636164571966, 0.14810397642748007459,
        0.68976733498510000455, 1.6763848301838038494, 2.05319162663775882187, 1],
];
const FAR = [
    [2.01033439929228813265e-7, 2.71155556874348757815e-5, 0.0012426609473880784386, 0.026532189526576123093,
        0.29656057182850489123, 1.7848265399172913358, 5.4637849111641143699, 6.6579046435011037772],
    [2.04426310338993978564e-15, 1.4215117583164458887e-7, 1.8463183175100546818e-5, 7.868691311456132591e-4,
        0.0148753612908506148525, 0.13692988092273580531, 0.59983220655588793769, 1],
];
const polynomial = (powers, at) => powers.reduce((value, power) => value * at + power);
const rational = ([above, below], at) => polynomial(above, at) / polynomial(below, at);

/** The point that a standard normal variable stays below with chance p. */
export function normalQuantile(p) {
    const away = p - 0.5;
    if (Math.abs(away) <= 0.425) return rational(CENTRE, 0.180625 - away * away) * away;
    const tail = Math.sqrt(-Math.log(away <= 0 ? p : 1 - p));
    const point = tail <= 5 ? rational(NEAR, tail - 1.6) : rational(FAR, tail - 5);
    return away < 0 ? -point : point;
}

/** Wilson's interval for a share. */
export function wilson(successes, n, z = 1.959964) {
    const share = successes / n, weight = 1 + z * z / n, center = (share + z * z / (2 * n)) / weight;
    const half = z / weight * Math.sqrt(share * (1 - share) / n + z * z / (4 * n * n));
    return [successes ? center - half : 0, successes < n ? center + half : 1];
}

/** Bonett and Price's interval of the drop (lost - gained) / n. */
export function pairedInterval(lost, gained, n, z = 1.959964) {
    const first = (lost + 1) / (n + 2), second = (gained + 1) / (n + 2);
    const half = z * Math.sqrt((first + second - (first - second) ** 2) / (n + 2));
    return [Math.max(first - second - half, -1), Math.min(first - second + half, 1)];
}

/** Nam's score statistic of a drop on the same n images. */
export function dropScore(lost, gained, n, drop) {
    if (drop < 0) return -dropScore(gained, lost, n, -drop);
    const part = (lost + gained) * (1 - drop) - 2 * drop * (n - lost);
    const won = (part + Math.sqrt(part ** 2 + 8 * n * gained * drop * (1 - drop))) / (4 * n);
    return (lost - gained - n * drop) / Math.sqrt(Math.max(n * (2 * won + drop * (1 - drop)), 1e-300));
}

function leastDrop(lost, gained, n, z) {
    let low = -1, high = 1;
    for (let k = 0; k < 60; k++) {
        const middle = (low + high) / 2;
        if (dropScore(lost, gained, n, middle) > z) low = middle; else high = middle;
    }
    return low;
}

function fewestLost(gained, n, drop, least) {
    let low = -1, high = n - gained + 1;
    while (high - low > 1) {
        const middle = Math.floor((low + high) / 2);
        if (dropScore(middle, gained, n, drop) >= least) high = middle; else low = middle;
    }
    return high;
}

const mostCounted = (share, n) => Math.min(n, Math.trunc(n * share + 7 * Math.sqrt(n * share) + 25));

function logFactorials(n) {
    const logs = new Float64Array(n + 1);
    for (let k = 1; k <= n; k++) logs[k] = logs[k - 1] + Math.log(k);
    return logs;
}

function chance(fewest, n, won, drop, logs) {
    const [logLost, logWon, logSame] = [won + drop, won, 1 - 2 * won - drop].map(p => Math.log(Math.max(p, 1e-300)));
    const first = Math.max(Math.trunc(n * won - 7 * Math.sqrt(n * won)) - 1, 0), most = mostCounted(won + drop, n);
    let total = 0;
    for (let gained = first; gained <= mostCounted(won, n); gained++)
        for (let lost = fewest[gained]; lost <= Math.min(most, n - gained); lost++) {
            const same = n - gained - lost;
            total += Math.exp(logs[n] - logs[lost] - logs[gained] - logs[same]
                + lost * logLost + gained * logWon + same * logSame);
        }
    return total;
}

function spaced(first, last, count) {
    const step = (last - first) / (count - 1);
    return Array.from({ length: count }, (_, k) => k === count - 1 ? last : k * step + first);
}

/** One-sided p-value of "accuracy dropped by no more than tolerated": `drop_p_value` of verify.py, which explains it. */
export function dropPValue(lost, gained, n, tolerated, level = 0.025) {
    if (lost === 0) return 1;
    const bound = leastDrop(lost, gained, n, -normalQuantile(level)), missed = level / 1000, top = (1 - tolerated) / 2;
    const most = Math.min(wilson(gained, n, Math.sqrt(-2 * Math.log(missed)))[1], top);
    const least = dropScore(lost, gained, n, bound) - 1e-9;
    const fewest = Array.from({ length: mostCounted(most, n) + 1 }, (_, k) => fewestLost(k, n, bound, least));
    const logs = logFactorials(n), last = Math.asin(Math.sqrt(most / top));
    let angles = spaced(0, last, Math.trunc(4 * Math.sqrt(n) * last) + 2), best = 0;
    for (let round = 0; round < 4; round++) {
        const found = angles.map(a => chance(fewest, n, Math.min(top * Math.sin(a) ** 2, most), tolerated, logs));
        const at = found.indexOf(Math.max(...found));
        best = Math.max(best, found[at]);
        angles = spaced(angles[Math.max(at - 1, 0)], angles[Math.min(at + 1, angles.length - 1)], 11);
    }
    return Math.min(best + missed, 1);
}

/** The test of version 0.1.0, for what names it: `mcnemar_tolerated` of verify.py. */
export function mcnemarTolerated(lost, gained, n, tolerated) {
    const logs = logFactorials(n);
    const tolerates = k => tolerated
        ? Math.exp(logs[n] - logs[k] - logs[n - k] + k * Math.log(tolerated) + (n - k) * Math.log1p(-tolerated))
        : Number(k === 0);
    let p = 0, tails = 0;
    for (let k = lost; k <= n; k++) p += tolerates(k);
    for (let k = 0; k < lost; k++) {
        const heads = gained + k;
        tails += Math.exp(logs[heads] - logs[gained] - logs[k] - (heads + 1) * Math.LN2);
        p += tolerates(lost - 1 - k) * (1 - tails);
    }
    return Math.min(Math.max(p, 0), 1);
}

export const TESTS = { 'exact-score': dropPValue, 'mcnemar-tolerated': mcnemarTolerated };

/** p-values adjusted so that one false alarm or more has a chance of alpha at most (Holm 1979). */
export function holm(values) {
    const order = values.map((_, k) => k).sort((a, b) => values[a] - values[b]), adjusted = [];
    order.reduce((top, at, rank) => {
        const step = Math.max(top, values[at] * (values.length - rank));
        adjusted[at] = Math.min(step, 1);
        return step;
    }, 0);
    return adjusted;
}

/** Images with which each of TESTS catches a drop with that power: `images_needed` of verify.py. */
export function imagesNeeded(drop, tolerated, gained, alpha, power) {
    const changed = drop + 2 * gained, gap = drop - tolerated;
    const within = -normalQuantile(alpha) * Math.sqrt(changed - tolerated ** 2);
    const n = ((within + normalQuantile(power) * Math.sqrt(changed - drop ** 2)) / gap) ** 2;
    return Math.ceil(n / 4 * (1 + Math.sqrt(1 + 4 / (n * gap))) ** 2);
}

// Square

export const GENERATOR = 'sfc32'; // of Square's draws: numpy's own is not rebuilt here, so outcomes are other ones

/** Whole numbers in [0, most) of a seed in [0, 2^53): sfc32 of PractRand, its first 15 thrown away. */
function generator(seed) {
    let a = 0, b = Math.floor(seed / 2 ** 32) | 0, c = seed | 0, counter = 1;
    const next = () => {
        const mixed = (a + b | 0) + counter | 0;
        counter = counter + 1 | 0;
        a = b ^ b >>> 9;
        b = c + (c << 3) | 0;
        c = (c << 21 | c >>> 11) + mixed | 0;
        return mixed >>> 0;
    };
    for (let k = 0; k < 15; k++) next();
    return most => Math.floor(next() / 2 ** 32 * most);
}

const inside = ([top, left, side], row, column) =>
    row >= top && row < top + side && column >= left && column < left + side;
const corner = (side, [, height, width], draw) => [draw(height - side + 1), draw(width - side + 1), side];

/** Calls visit(at, channel, row, column) for each value of an image. */
function pixels([channels, height, width], visit) {
    let at = 0;
    for (let channel = 0; channel < channels; channel++)
        for (let row = 0; row < height; row++)
            for (let column = 0; column < width; column++) visit(at++, channel, row, column);
}

function proposeLinf(x, best, eps, shape, share, draw) {
    const [channels, height, width] = shape, step = Math.fround(eps), trial = best.slice();
    const side = Math.min(Math.max(Math.round(Math.sqrt(share * height * width)), 1), height, width);
    const square = share ? corner(side, shape, draw) : null;
    const signs = Array.from({ length: channels * (share ? 1 : width) }, () => draw(2) ? step : -step);
    pixels(shape, (at, channel, row, column) => {
        if (square && !inside(square, row, column)) return;
        const sign = signs[square ? channel : channel * width + column];
        trial[at] = Math.min(Math.max(Math.fround(x[at] + sign), 0), 1);
    });
    return trial;
}

/** A peak over a valley, of norm 1, as a function of row and column; turned: side by side. */
function bumps(side) {
    const heights = Array.from({ length: side }, () => new Float64Array(side)), upper = Math.floor(side / 2);
    const peak = (rows, from, sign) => {
        for (let row = 0; row < rows; row++)
            for (let column = 0; column < side; column++) {
                const away = Math.max(Math.abs(row - Math.floor(rows / 2)), Math.abs(column - upper));
                for (let k = upper; k >= away; k--) heights[from + row][column] += sign / (k + 1) ** 2;
            }
    };
    peak(upper, 0, 1);
    peak(side - upper, upper, -1);
    const length = Math.sqrt(sum(heights.map(row => sum(row.map(v => v * v)))));
    return (row, column, turned) => (turned ? heights[column][row] : heights[row][column]) / length;
}

function proposeL2(x, best, eps, shape, share, draw) {
    const [channels, height, width] = shape, moved = Float64Array.from(best, (value, at) => value - x[at]);
    if (!share) stripes(moved, shape, draw);
    else {
        const side = Math.min(Math.max(Math.round(Math.sqrt(share * height * width)), 3), height, width);
        const bump = bumps(side), to = corner(side, shape, draw), source = corner(side, shape, draw), turned = draw(2);
        const spare = Math.max(eps ** 2 - sum(moved.map(v => v * v)), 0) / channels;
        const there = new Float64Array(channels).fill(1e-24), both = new Float64Array(channels).fill(spare);
        pixels(shape, (at, channel, row, column) => {
            if (inside(to, row, column)) there[channel] += moved[at] ** 2;
            if (inside(to, row, column) || inside(source, row, column)) both[channel] += moved[at] ** 2;
        });
        const signs = Array.from(there, () => draw(2) ? 1 : -1), length = new Float64Array(channels).fill(1e-24);
        pixels(shape, (at, channel, row, column) => {
            if (inside(to, row, column)) {
                moved[at] = signs[channel] * bump(row - to[0], column - to[1], turned) + moved[at] / Math.sqrt(there[channel]);
                length[channel] += moved[at] ** 2;
            } else if (inside(source, row, column)) moved[at] = 0;
        });
        pixels(shape, (at, channel, row, column) => {
            if (inside(to, row, column)) moved[at] *= Math.sqrt(both[channel] / length[channel]);
        });
    }
    const scale = eps / Math.sqrt(Math.max(sum(moved.map(v => v * v)), 1e-24));
    return Float32Array.from(moved, (value, at) => Math.min(Math.max(x[at] + value * scale, 0), 1));
}

function stripes(moved, shape, draw) {
    const [channels, height, width] = shape, side = Math.max(Math.floor(Math.min(height, width) / 5), 1);
    const bump = bumps(side), across = Math.floor(width / side) + 1, down = Math.floor(height / side) + 1;
    const signs = Array.from({ length: channels * down * across }, () => draw(2) ? 1 : -1);
    pixels(shape, (at, channel, row, column) => {
        const tile = (channel * down + Math.floor(row / side)) * across + Math.floor(column / side);
        moved[at] = signs[tile] * bump(row % side, column % side, 0);
    });
}

/** Margin of the true class over the best other one, and whether the label is wrong, of one row of logits. */
function judged(logits, label) {
    let other = -Infinity, first = 0;
    logits.forEach((value, k) => {
        if (k !== label) other = Math.max(other, value);
        if (value > logits[first]) first = k;
    });
    return [logits[label] - other, first !== label];
}

const PROPOSALS = { linf: proposeLinf, l2: proposeL2 }, MARKS = [10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000];

/**
 * Square (Andriushchenko et al. 2020) as verify.py has it, on draws of its own; returns 1 for each broken image.
 * logitsOf(x): of any number of images; x: float32 in [0, 1] of shape [C, H, W] each; whole: by steps of a byte.
 */
export async function squareAttack(logitsOf, x, y, { shape, eps, queries, seed, norm, whole, onStep }) {
    const n = y.length, size = x.length / n, best = x.slice(), draw = generator(seed), propose = PROPOSALS[norm];
    const image = (values, k) => values.subarray(k * size, (k + 1) * size);
    const judge = async (values, labels) => {
        const logits = await logitsOf(values), classes = logits.length / labels.length;
        return labels.map((label, k) => judged(logits.subarray(k * classes, (k + 1) * classes), label));
    };
    const state = await judge(best, Array.from(y));
    for (let step = 0; step < queries; step++) {
        const active = [...state.keys()].filter(k => !state[k][1]);
        if (!active.length) break;
        const share = step ? 0.8 / 2 ** MARKS.filter(mark => mark < step / queries * 10000).length : 0;
        const trial = new Float32Array(active.length * size);
        active.forEach((k, at) => {
            const proposed = propose(image(x, k), image(best, k), eps, shape, share, draw);
            if (whole) wholeSteps(proposed, image(x, k));
            trial.set(proposed, at * size);
        });
        const found = await judge(trial, active.map(k => y[k]));
        found.forEach(([margin, wrong], at) => {
            if (step && !wrong && margin >= state[active[at]][0]) return;
            image(best, active[at]).set(image(trial, at));
            state[active[at]] = [margin, wrong];
        });
        await onStep?.(step + 1, queries);
    }
    return Uint8Array.from(state, ([, wrong]) => Number(wrong));
}

/** Towards the image: rounding to the nearest step of a byte could leave the ball. */
function wholeSteps(trial, x) {
    trial.forEach((value, at) => {
        const steps = (value - x[at]) * 255;
        trial[at] = x[at] + Math.trunc(steps + (steps < 0 ? -1e-3 : 1e-3)) / 255;
    });
}
