// Decodes the files that come on stdin, each after its size (4 bytes, little-endian), in several ways, and prints a line of
// JSON for each way. Arguments: the bounds of LIM-002.
import { readSync, writeSync } from 'node:fs';
import { outcome, WAYS } from '../../fixtures/decoders/javascript/conformance.mjs';

const [maxTensorBytes, maxTotalBytes] = process.argv.slice(2).map(Number);

function take(n) {
  const bytes = new Uint8Array(n);
  for (let at = 0; at < n;) {
    const got = readSync(0, bytes, at, n - at);
    if (!got) return null;
    at += got;
  }
  return bytes;
}

for (let head; (head = take(4));) {
  const bytes = take(new DataView(head.buffer).getUint32(0, true)), lines = [];
  for (const way of ['whole', 'streamed', 'byIndex']) {
    const read = (source, options) => WAYS[way](source, { ...options, maxTensorBytes, maxTotalBytes });
    lines.push(`${JSON.stringify(await outcome(bytes, read))}\n`);
  }
  const text = Buffer.from(lines.join(''));
  for (let at = 0; at < text.length;) at += writeSync(1, text, at);
}
