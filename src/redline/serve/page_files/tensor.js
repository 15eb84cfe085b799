"use strict";
// Tensors of the Open Inference Protocol as bytes: little endian, row major.
const Tensor = (() => {
  const halfToNumber = (bits) => {
    const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
    if (exponent === 0) return sign * fraction * 2 ** -24;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  };
  const bits32 = (value) => new Uint32Array(Float32Array.of(value).buffer)[0];
  const numberToHalf = (value) => {
    const sign = Object.is(Math.sign(value), -0) || value < 0 ? 0x8000 : 0, size = Math.abs(value);
    if (Number.isNaN(value)) return 0x7e00;
    if (size >= 65520) return sign | 0x7c00;
    if (size < 2 ** -14) return sign | roundEven(size * 2 ** 24);
    const exponent = Math.floor(Math.log2(size));
    return sign | (((exponent + 15) << 10) + roundEven((size / 2 ** exponent - 1) * 1024));
  };
  const roundEven = (value) => {
    const low = Math.floor(value), rest = value - low;
    return rest > 0.5 || (rest === 0.5 && low % 2) ? low + 1 : low;
  };
  const number = (text) => {
    const value = Number(text);
    if (Number.isNaN(value) && String(text) !== "NaN") throw new Error(`${JSON.stringify(text)} is not a number`);
    return value;
  };
  const whole = (text) => {
    if (typeof text === "number" && !Number.isInteger(text)) throw new Error(`${text} is not a whole number`);
    return BigInt(text);
  };
  // datatype -> [bytes, read, write]
  const kinds = {
    BOOL: [1, (v, i) => v.getUint8(i) !== 0, (v, i, x) => v.setUint8(i, x && x !== "false" ? 1 : 0)],
    UINT8: [1, (v, i) => v.getUint8(i), (v, i, x) => v.setUint8(i, Number(whole(x)))],
    INT8: [1, (v, i) => v.getInt8(i), (v, i, x) => v.setInt8(i, Number(whole(x)))],
    UINT16: [2, (v, i) => v.getUint16(i, true), (v, i, x) => v.setUint16(i, Number(whole(x)), true)],
    INT16: [2, (v, i) => v.getInt16(i, true), (v, i, x) => v.setInt16(i, Number(whole(x)), true)],
    UINT32: [4, (v, i) => v.getUint32(i, true), (v, i, x) => v.setUint32(i, Number(whole(x)), true)],
    INT32: [4, (v, i) => v.getInt32(i, true), (v, i, x) => v.setInt32(i, Number(whole(x)), true)],
    UINT64: [8, (v, i) => v.getBigUint64(i, true), (v, i, x) => v.setBigUint64(i, whole(x), true)],
    INT64: [8, (v, i) => v.getBigInt64(i, true), (v, i, x) => v.setBigInt64(i, whole(x), true)],
    FP16: [2, (v, i) => halfToNumber(v.getUint16(i, true)), (v, i, x) => v.setUint16(i, numberToHalf(number(x)), true)],
    BF16: [2, (v, i) => new Float32Array(Uint32Array.of(v.getUint16(i, true) << 16).buffer)[0],
      (v, i, x) => { const b = bits32(number(x)); v.setUint16(i, Number.isNaN(Number(x)) ? 0x7fc0 : (b + 0x7fff + ((b >>> 16) & 1)) >>> 16, true); }],
    FP32: [4, (v, i) => v.getFloat32(i, true), (v, i, x) => v.setFloat32(i, number(x), true)],
    FP64: [8, (v, i) => v.getFloat64(i, true), (v, i, x) => v.setFloat64(i, number(x), true)],
  };

  const count = (shape) => shape.reduce((product, size) => product * size, 1);

  const encode = (datatype, values) => {
    if (datatype === "BYTES") {
      const parts = values.map((value) => new TextEncoder().encode(String(value)));
      const bytes = new Uint8Array(parts.reduce((sum, part) => sum + 4 + part.length, 0));
      const view = new DataView(bytes.buffer);
      let at = 0;
      for (const part of parts) {
        view.setUint32(at, part.length, true);
        bytes.set(part, at + 4);
        at += 4 + part.length;
      }
      return bytes;
    }
    if (!kinds[datatype]) throw new Error(`this page cannot write ${datatype}`);
    const [size, , write] = kinds[datatype];
    const view = new DataView(new ArrayBuffer(size * values.length));
    values.forEach((value, index) => write(view, index * size, value));
    return new Uint8Array(view.buffer);
  };

  const decode = (datatype, bytes) => {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const values = [];
    if (datatype === "BYTES") {
      for (let at = 0; at < bytes.length;) {
        const length = view.getUint32(at, true);
        values.push(new TextDecoder().decode(bytes.subarray(at + 4, at + 4 + length)));
        at += 4 + length;
      }
      return values;
    }
    if (!kinds[datatype]) throw new Error(`this page cannot read ${datatype}`);
    const [size, read] = kinds[datatype];
    for (let at = 0; at + size <= bytes.length; at += size) values.push(read(view, at));
    return values;
  };

  const isFloat = (datatype) => /^(FP|BF)/.test(datatype);

  // A sample of so many values; whole numbers stay small, so that they are legal as token ids.
  const sample = (datatype, length, fill) => Array.from({ length }, (_, index) => {
    if (datatype === "BYTES") return fill === "random" ? `text ${index}` : fill === "ramp" ? String(index) : fill === "ones" ? "1" : "";
    if (fill === "zeros") return 0;
    if (fill === "ones") return 1;
    if (fill === "ramp") return datatype === "BOOL" ? index % 2 : datatype.endsWith("INT8") ? index % 128 : index;
    if (isFloat(datatype)) return Math.round((Math.random() * 2 - 1) * 1000) / 1000;
    return Math.floor(Math.random() * (datatype === "BOOL" ? 2 : 100));
  });

  return { encode, decode, sample, count, isFloat };
})();
