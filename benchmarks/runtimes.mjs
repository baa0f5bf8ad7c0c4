// Runs a dense and an encoded model in onnxruntime for JavaScript; benchmarks/runtimes.py calls it:
//   node runtimes.mjs PACKAGE FOLDER_WITH_NODE_MODULES DENSE ENCODED FEEDS.json SECONDS
// Prints one line of JSON: version, seconds to load each, largest difference, if all bits agree, seconds of runs.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";

const [name, folder, dense, encoded, feedsFile, seconds] = process.argv.slice(2);
const require = createRequire(join(folder, "package.json"));
const engine = require(name);
engine.env.wasm.numThreads = 1;

const kinds = {
  bool: Uint8Array,
  float32: Float32Array,
  float64: Float64Array,
  int8: Int8Array,
  int32: Int32Array,
  int64: BigInt64Array,
  uint8: Uint8Array,
};

function readFeeds() {
  const feeds = {};
  for (const { name, type, dims, file } of JSON.parse(readFileSync(feedsFile))) {
    const bytes = readFileSync(join(dirname(feedsFile), file));
    const copy = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
    feeds[name] = new engine.Tensor(type, new kinds[type](copy), dims);
  }
  return feeds;
}

async function open(path) {
  const bytes = new Uint8Array(readFileSync(path));
  const began = performance.now();
  const session = await engine.InferenceSession.create(bytes, {
    intraOpNumThreads: 1,
    interOpNumThreads: 1,
    logSeverityLevel: 3,
  });
  return [session, (performance.now() - began) / 1000];
}

async function timed(session, feeds) {
  const began = performance.now();
  await session.run(feeds);
  return (performance.now() - began) / 1000;
}

function compare(one, other) {
  let largest = 0;
  let identical = true;
  for (const key of Object.keys(one)) {
    const [first, second] = [one[key].data, other[key].data];
    identical &&= Buffer.from(first.buffer, first.byteOffset, first.byteLength).equals(
      Buffer.from(second.buffer, second.byteOffset, second.byteLength),
    );
    for (let i = 0; i < first.length; i++) {
      largest = Math.max(largest, Math.abs(Number(first[i]) - Number(second[i])));
    }
  }
  return [largest, identical];
}

await open(dense); // the engine starts
const feeds = readFeeds();
const tries = [];
for (let i = 0; i < 3; i++) tries.push([await open(dense), await open(encoded)]);
const loads = [0, 1].map((file) => tries.map((each) => each[file][1]).sort((a, b) => a - b)[1]);
const [[first], [second]] = tries.at(-1);
const [difference, identical] = compare(await first.run(feeds), await second.run(feeds));
const pairs = [];
const end = performance.now() + 1000 * Number(seconds);
while (pairs.length < 3 || (pairs.length < 300 && performance.now() < end)) {
  const swapped = pairs.length % 2;
  const one = await timed(swapped ? second : first, feeds);
  const two = await timed(swapped ? first : second, feeds);
  pairs.push(swapped ? [two, one] : [one, two]);
}
const { version } = JSON.parse(readFileSync(join(folder, "node_modules", name, "package.json")));
console.log(JSON.stringify({ version, loads, difference, identical, pairs }));
process.exit(0);
