// What tasks return, made visible.

const PNG = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];

/** The bytes in a value, or null: WAMP writes them in JSON as base64 behind a NUL. */
function asBytes(value) {
  if (typeof value !== "string" || !value.startsWith("\0")) return null;
  return Uint8Array.from(atob(value.slice(1)), (character) => character.charCodeAt(0));
}

/** An image element for the bytes of a PNG; null for everything else. */
export function asImage(value) {
  const bytes = asBytes(value);
  if (!bytes || !PNG.every((byte, index) => bytes[index] === byte)) return null;
  const image = document.createElement("img");
  image.alt = "The picture that the task returned";
  image.src = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
  image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
  return image;
}

/** Text for any value that WAMP carries. */
export function asText(value) {
  const bytes = asBytes(value);
  if (bytes) return `${bytes.length} bytes`;
  return JSON.stringify(value, null, 2) ?? "null";
}
