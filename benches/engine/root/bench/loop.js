// Objects, arrays, strings and numbers in a loop that the compiler gets hold of.
'use strict';
const rounds = Number(process.argv[2]);
let check = 0;
for (let round = 0; round < rounds; round++) {
  const points = [];
  for (let i = 0; i < 20000; i++) {
    points.push({ x: (i * 7919) % 1009, y: i / 3, name: 'p' + (i % 100) });
  }
  points.sort((a, b) => a.x - b.x || a.y - b.y);
  const byName = new Map();
  for (const p of points) byName.set(p.name, (byName.get(p.name) || 0) + p.x * p.y);
  let hash = 0;
  for (const [name, sum] of byName) {
    for (let k = 0; k < name.length; k++) hash = (hash * 31 + name.charCodeAt(k)) | 0;
    hash ^= Math.floor(sum);
  }
  const grid = new Float64Array(4096);
  for (let i = 0; i < 200000; i++) grid[i & 4095] += Math.sqrt(i) * 0.5;
  check = (check + hash + Math.floor(grid[17])) | 0;
}
console.log(check);
