// The colours of attention weights: equal steps look equally large.

/** How far along the scale a weight lies: small weights, of which most texts have many, are seen too. */
export function placeOf(weight: number): number {
  return Math.sqrt(Math.min(Math.max(weight, 0), 1));
}

/** The colour of a weight from 0 to 1. */
export function colourOf(weight: number): string {
  return COLOURS[Math.round(placeOf(weight) * STEPS)]!;
}

/** The scale as a CSS gradient, for a legend. */
export function gradient(): string {
  return `linear-gradient(to right, ${COLOURS.filter((_, step) => step % 4 === 0).join(", ")})`;
}

// Every 15th of the 256 colours of viridis, which is even to people with and without colour vision.
// Source: S. van der Walt, N. Smith, "A better default colormap for matplotlib", SciPy 2015,
// https://bids.github.io/colormap/ (CC0).
const VIRIDIS = [
  "#440154", "#481769", "#472a7a", "#433d84", "#3d4e8a", "#355e8d", "#2e6d8e", "#297b8e", "#23898e",
  "#1f978b", "#21a585", "#2eb37c", "#46c06f", "#65cb5e", "#89d548", "#b0dd2f", "#d8e219", "#fde725",
];

const STEPS = 128;
const COLOURS: readonly string[] = Array.from({ length: STEPS + 1 }, (_, step) => {
  const place = (step / STEPS) * (VIRIDIS.length - 1);
  const below = Math.min(Math.floor(place), VIRIDIS.length - 2);
  const [from, to] = [toOklab(VIRIDIS[below]!), toOklab(VIRIDIS[below + 1]!)];
  return toCss(from.map((value, axis) => value + (place - below) * (to[axis]! - value)) as Triple);
});

type Triple = [number, number, number];

// Colours are mixed in OKLab, whose distances are those that people see.
// Source: B. Ottosson, "A perceptual color space for image processing", 2020,
// https://bottosson.github.io/posts/oklab/.
function toOklab(colour: string): Triple {
  const [r, g, b] = [1, 3, 5].map((at) => toLinear(parseInt(colour.slice(at, at + 2), 16) / 255)) as Triple;
  const l = Math.cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b);
  const m = Math.cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b);
  const s = Math.cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b);
  return [
    0.2104542553 * l + 0.793617785 * m - 0.0040720468 * s,
    1.9779984951 * l - 2.428592205 * m + 0.4505937099 * s,
    0.0259040371 * l + 0.7827717662 * m - 0.808675766 * s,
  ];
}

function toCss([lightness, a, b]: Triple): string {
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  const linear = [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ];
  return `rgb(${linear.map((value) => Math.round(255 * fromLinear(value))).join(" ")})`;
}

function toLinear(value: number): number {
  return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
}

function fromLinear(value: number): number {
  const within = Math.min(Math.max(value, 0), 1);
  return within <= 0.0031308 ? 12.92 * within : 1.055 * within ** (1 / 2.4) - 0.055;
}
