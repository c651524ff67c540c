// Read an account's AppJWT: `authorization()` for each request, `refused()` when LivePerson answers 401.
// VAULT_ADDR=… VAULT_TOKEN=… ACCOUNT=le81823118 node read-token.mjs    (Node.js 18 or newer, no package needed)
// VAULT_NAMESPACE where Vault needs it; NODE_EXTRA_CA_CERTS where the system does not trust Vault's certificate.
const { VAULT_ADDR, VAULT_TOKEN, VAULT_NAMESPACE, ACCOUNT } = process.env;
const PATH = "secret/data/liveperson/tokens"; // mount, "data", prefix
const TIMEOUT = 3_000; // milliseconds, as are the others: a Vault that does not answer must not hold up your requests
const READ_EVERY = 300_000;
const RETRY_AFTER = 10_000; // counted from the end of the attempt

export class AppJWT {
  #url;
  #secret = {};
  #error;
  #nextRead = 0;
  #reading;

  constructor(account) {
    this.#url = `${VAULT_ADDR}/v1/${PATH}/${account}`;
  }

  /** The value for the Connector API; other LivePerson APIs want "Bearer " before it. */
  async authorization() {
    if (performance.now() >= this.#nextRead) await this.#read();
    if (this.#remaining() <= 0) throw new Error(`no live AppJWT at ${this.#url}`, { cause: this.#error });
    return this.#secret.access_token;
  }

  /** True if Vault has another token than the one that LivePerson refused (40102): try again once. */
  async refused(token) {
    await this.#read();
    return (this.#secret.access_token ?? token) !== token;
  }

  /** One read at a time, whoever asks meanwhile waits for the same. Never rejects. */
  #read() {
    return (this.#reading ??= this.#ask().finally(() => (this.#reading = undefined)));
  }

  async #ask() {
    let pause = 0;
    try {
      const headers = { "X-Vault-Token": VAULT_TOKEN ?? "", "X-Vault-Namespace": VAULT_NAMESPACE ?? "" };
      const answer = await fetch(this.#url, { headers, signal: AbortSignal.timeout(TIMEOUT) });
      if (!answer.ok) throw new Error(`Vault answered ${answer.status}`);
      this.#secret = (await answer.json()).data.data;
      this.#error = undefined;
      pause = Math.min(READ_EVERY, this.#remaining() - 60_000); // in its last minute a token is read more often
    } catch (error) {
      this.#error = error; // whatever it is, the token at hand serves until it expires
    }
    this.#nextRead = performance.now() + Math.max(pause, RETRY_AFTER);
  }

  #remaining() {
    return Number(this.#secret.exp ?? 0) * 1000 - Date.now();
  }
}

if (ACCOUNT) console.log(await new AppJWT(ACCOUNT).authorization());
