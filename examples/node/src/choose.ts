// Which token comes next.

/** Draw an id from softmax(logits / temperature); the most likely at 0. */
export function choose(logits: Float32Array, temperature: number, uniform: number): number {
  const most = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  if (temperature === 0) return logits.indexOf(most);
  const weights = logits.map((logit) => Math.exp((logit - most) / temperature));
  let left = uniform * weights.reduce((a, b) => a + b, 0);
  const found = weights.findIndex((weight) => (left -= weight) < 0);
  return found < 0 ? logits.indexOf(most) : found;
}
