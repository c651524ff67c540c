// The AppJWT of an account, by node-vault: `authorization()` for each request, `refused()` when LivePerson answers 401.
// npm install node-vault; VAULT_ADDR=… VAULT_TOKEN=… ACCOUNT=le81823118 node read-token.mjs
// Where the system does not trust Vault's certificate: NODE_EXTRA_CA_CERTS; VAULT_CACERT is not looked at.
import vault from "node-vault";

const READ_EVERY = 300_000; // milliseconds; at least 19 minutes of life are left then
const TRY_AGAIN_AFTER = 10_000;
const client = vault({ endpoint: process.env.VAULT_ADDR, token: process.env.VAULT_TOKEN });

export class AppJWT {
  #secret = {};
  #readAt = -Infinity;
  #path;

  constructor(account) {
    this.#path = `secret/data/liveperson/tokens/${account}`;
  }

  /** As it is for the Connector API; other LivePerson APIs want "Bearer " before it. */
  async authorization() {
    if (performance.now() >= this.#readAt) {
      this.#readAt = performance.now() + TRY_AGAIN_AFTER;
      try {
        await this.#read();
      } catch (error) {
        if (Date.now() / 1000 >= Number(this.#secret.exp ?? 0)) throw error; // until then what we have serves
      }
    }
    return this.#secret.access_token;
  }

  /** LivePerson answered 401 with errorCode 40102; whether to try once more, with another token. */
  async refused() {
    const before = this.#secret.fingerprint;
    await this.#read();
    return this.#secret.fingerprint !== before; // the same token: wait and alert, do not loop
  }

  async #read() {
    this.#secret = (await client.read(this.#path)).data.data;
    this.#readAt = performance.now() + READ_EVERY;
  }
}

if (process.env.ACCOUNT) console.log(await new AppJWT(process.env.ACCOUNT).authorization());
