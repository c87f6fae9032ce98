'use strict';
// Draws random numbers all the time from generators that were seeded before the freeze; when the machine has been
// resumed, says what it drew from then on.
//
//     draw.js MODE       MODE: `none` leaves the generators alone; of `file` and `hook` a worker process draws, which is
//                        started anew when it ends: with `file` it ends itself where the generation file says that the
//                        machine was resumed, with `hook` somebody ends it before it goes on
//
// Writes /tmp/MODE.ready with the process id of who draws, when it draws, and /tmp/MODE.drawn with lines `SOURCE VALUE`
// after the resume.

const { fork } = require('node:child_process');
const crypto = require('node:crypto');
const fs = require('node:fs');

const DRAWS = 4;
const file = fs.openSync('/run/smolvm/generation', 'r');

function generation() {
  const bytes = Buffer.alloc(33);
  fs.readSync(file, bytes, 0, 33, 0);
  return bytes.toString();
}

const sources = {
  'node-bytes': () => crypto.randomBytes(16).toString('hex'),
  'node-uuid': () => crypto.randomUUID(),
  'node-values': () => Buffer.from(crypto.getRandomValues(new Uint8Array(16))).toString('hex'),
};

// Makes a file that is there whole or not at all.
function write(path, text) {
  fs.writeFileSync(path + '.part', text);
  fs.renameSync(path + '.part', path);
}

function draw(mode, seeded) {
  const drawn = [];
  const own = generation();
  let turn = 0;
  const step = () => {
    const now = generation();
    const resumed = now !== seeded;
    if (mode === 'file' && now !== own) {
      process.exit(0);
    }
    for (const [name, value] of Object.entries(sources)) {
      const bytes = value();
      if (resumed) {
        drawn.push(`${name} ${bytes}`);
      }
    }
    if (drawn.length >= DRAWS * Object.keys(sources).length) {
      write(`/tmp/${mode}.drawn`, drawn.join('\n') + '\n');
      return;
    }
    turn += 1;
    if (turn === 3) {
      write(`/tmp/${mode}.ready`, String(process.pid));
    }
    setTimeout(step, 10);
  };
  step();
}

const [mode, seeded] = process.argv.slice(2);
if (mode === 'none' || seeded) {
  draw(mode, seeded || generation());
} else {
  // Who is started after the resume is told the generation of before, and so knows that its draws are from after it.
  const first = generation();
  const start = () => fork(__filename, [mode, first]).on('exit', start);
  start();
}
