// The AppJWT of an account, by node-vault: npm install node-vault; ACCOUNT=le81823118 node read-token.mjs
// VAULT_ADDR, VAULT_TOKEN and VAULT_CACERT (NODE_EXTRA_CA_CERTS) come from the environment.
import vault from "node-vault";

const READ_EVERY = 300_000; // milliseconds; at least 19 minutes of life are left then
const client = vault({ endpoint: process.env.VAULT_ADDR, token: process.env.VAULT_TOKEN });
let secret, readAt = -Infinity;

export async function authorization(account) {
  if (performance.now() - readAt > READ_EVERY) {
    secret = (await client.read(`secret/data/liveperson/tokens/${account}`)).data.data;
    readAt = performance.now();
  }
  return secret.access_token; // as it is for the Connector API; other LivePerson APIs want "Bearer " before it
}

if (process.env.ACCOUNT) console.log(await authorization(process.env.ACCOUNT));
