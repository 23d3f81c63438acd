// Decodes the files that come on stdin, each after its size (4 bytes, little-endian), in several ways, and prints a line of
// JSON for each way. Arguments: the bounds of LIM-002; then `in-turn`, if each file is to be read in one way, in turn: the
// others print an empty object.
import { readSync, writeSync } from 'node:fs';
import { outcome, WAYS } from '../../fixtures/decoders/javascript/conformance.mjs';

const [maxTensorBytes, maxTotalBytes] = process.argv.slice(2, 4).map(Number), inTurn = process.argv[4] === 'in-turn';
const ways = ['whole', 'streamed', 'byIndex'];
let turn = 0;

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
  turn = (turn + 1) % ways.length;
  for (const way of ways) {
    if (inTurn && way !== ways[turn]) {
      lines.push('{}\n');
      continue;
    }
    const read = (source, options) => WAYS[way](source, { ...options, maxTensorBytes, maxTotalBytes });
    lines.push(`${JSON.stringify(await outcome(bytes, read))}\n`);
  }
  const text = Buffer.from(lines.join(''));
  for (let at = 0; at < text.length;) at += writeSync(1, text, at);
}
