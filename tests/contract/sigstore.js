// Checks receipts with @sigstore/verify, which knows nothing of Lading.
// Reads {modules, key: {name, id, spki}, receipts: [{checkpoint, index, hashes, entry}]}, bytes as base64; answers with
// one of "accepted" or the error for each receipt.

const crypto = require('crypto');
const path = require('path');

const given = JSON.parse(require('fs').readFileSync(0, 'utf8'));
const tlog = path.join(given.modules, '@sigstore/verify/dist/tlog');
const { verifyCheckpoint } = require(path.join(tlog, 'checkpoint.js'));
const { verifyMerkleInclusion } = require(path.join(tlog, 'merkle.js'));

const bytes = (text) => Buffer.from(text, 'base64');
const logs = [
  {
    logID: bytes(given.key.id),
    baseURL: given.key.name,
    publicKey: crypto.createPublicKey({ key: bytes(given.key.spki), format: 'der', type: 'spki' }),
  },
];

const check = ({ checkpoint, index, hashes, entry }) => {
  const proven = {
    canonicalizedBody: bytes(entry),
    inclusionProof: { logIndex: index, hashes: hashes.map(bytes), checkpoint: { envelope: checkpoint } },
  };
  try {
    verifyMerkleInclusion(proven, verifyCheckpoint(proven, logs));
    return 'accepted';
  } catch (error) {
    return `${error.code || error.name}: ${error.message}`;
  }
};

console.log(JSON.stringify(given.receipts.map(check)));
