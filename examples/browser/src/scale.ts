// The colours of attention weights: equal steps look equally large.

/** How far along the scale a weight lies: small weights, of which most texts have many, are seen too. */
export function placeOf(weight: number): number {
  return Math.sqrt(Math.min(Math.max(weight, 0), 1));
}

/** Colours from one to another, mixed in OKLab, whose distances are those that people see. */
export class Scale {
  private static readonly STEPS = 128;
  private readonly steps: readonly string[];

  /** @param least of weight 0, as #rrggbb. @param most of weight 1. */
  constructor(least: string, most: string) {
    const [from, to] = [toOklab(least), toOklab(most)];
    this.steps = Array.from({ length: Scale.STEPS + 1 }, (_, step) => {
      const share = step / Scale.STEPS;
      return toCss(from.map((value, axis) => value + share * (to[axis]! - value)) as Triple);
    });
  }

  colourOf(weight: number): string {
    return this.steps[Math.round(placeOf(weight) * Scale.STEPS)]!;
  }

  /** The scale as a CSS gradient, for a legend. */
  gradient(): string {
    const every = 8;
    return `linear-gradient(to right, ${this.steps.filter((_, step) => step % every === 0).join(", ")})`;
  }
}

type Triple = [number, number, number];

// Source: B. Ottosson, "A perceptual color space for image processing", 2020,
// https://bottosson.github.io/posts/oklab/.
function toOklab(colour: string): Triple {
  const digits = colour.length === 4 ? colour.replace(/[0-9a-f]/gi, "$&$&") : colour;
  const [r, g, b] = [1, 3, 5].map((at) => toLinear(parseInt(digits.slice(at, at + 2), 16) / 255)) as Triple;
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
