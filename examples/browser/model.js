// Inputs for any model, and tensors as text; the page and Node.js use it alike.

const ARRAYS = {
  float32: Float32Array,
  float64: Float64Array,
  int8: Int8Array,
  uint8: Uint8Array,
  int32: Int32Array,
  int64: BigInt64Array,
  bool: Uint8Array,
};

/** Return shapes by input name from texts such as "image:1x3x224x224". */
export function dimsOf(texts) {
  return Object.fromEntries(
    texts.map((text) => {
      const [, name, dims] = /^(.+):([0-9]+(?:x[0-9]+)*)$/.exec(text) ?? [];
      if (!name) throw new Error(`${text}: expected such as image:1x3x224x224`);
      return [name, dims.split("x").map(Number)];
    }),
  );
}

/** Return random inputs as `metadata` of a session describes them; dims left open are 1 unless `given`. */
export function randomInputs(ort, metadata, given) {
  return Object.fromEntries(
    metadata.map(({ name, type, shape }) => {
      const dims = given[name] ?? shape.map((dim) => (typeof dim === "number" && dim > 0 ? dim : 1));
      const size = dims.reduce((product, dim) => product * dim, 1);
      if (!(type in ARRAYS)) throw new Error(`input ${name} is ${type}, expected numbers`);
      const values = new ARRAYS[type](size);
      for (let i = 0; i < size; i++) {
        if (type.startsWith("float")) values[i] = Math.random();
        else values[i] = type === "int64" ? BigInt(Math.random() < 0.5) : Number(Math.random() < 0.5);
      }
      return [name, new ort.Tensor(type, values, dims)];
    }),
  );
}

/** Return the type, the shape and the first values of a tensor as text. */
export function describe(tensor) {
  const values = Array.from(tensor.data.slice(0, 8), (value) => Number(value).toPrecision(4));
  const more = tensor.data.length > 8 ? ", …" : "";
  return `${tensor.type} [${tensor.dims.join(", ")}]: ${values.join(", ")}${more}`;
}
