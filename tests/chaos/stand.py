"""The stand for faults: a scene with accounts, a daemon that refreshes their tokens, and readers that watch."""

import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sandbox.kubernetes import Kubernetes
from sandbox.openbao import OpenBao
from sandbox.raft import Cluster, RaftNode
from sandbox.world import POLICIES
from tests.chaos.gate import Gate
from tests.chaos.rendering import Rendering
from tests.chaos.watch import Watch
from tests.integration.processes import Daemon, Done, Scene, Settings, eventually, faketime
from tests.integration.servers import Balancer, Proxy

LIFE = 20
"""Seconds that a token lives: an hour, made short. The timeouts below are shortened with it."""
LONG_LIFE = 60
_TIMEOUT_SHARE = 0.05
"""Of a life: a second of twenty. Of an hour it is three minutes, where the defaults are ten seconds."""
_FAST: Settings = {
    "APPJWT_SENTINEL_DOMAIN_CACHE_TTL": "1s",
    "APPJWT_TOKENS_RESYNC_INTERVAL": "1s",
}
_PATIENT: Settings = {"APPJWT_VAULT_TIMEOUT": "10s", "APPJWT_SENTINEL_TIMEOUT": "10s"}
_RENDERED = 5
"""Accounts whose tokens the agent renders."""
ACCOUNTS = {f"le4427019{number}": ("va", "lo")[number % 2] for number in range(5)}
_ALL_IN_VA = dict.fromkeys(ACCOUNTS, "va")
ROLE = "appjwt-worker"
_PAGED = (POLICIES / "worker.hcl").read_text().replace('["list"]', '["list"]\n  pagination_limit = 5')

Line = dict[str, Any]
Mark = dict[int, int]


@dataclass
class Stand:
    scene: Scene
    watch: Watch
    vaults: Sequence[OpenBao]
    life: int
    changes: Settings
    """To the daemon's settings."""
    gate: Gate | None = None
    cluster: Cluster | None = None
    daemons: list[Daemon] = field(default_factory=list)
    """The last one is the one that runs."""
    rendering: Rendering | None = None
    """A real agent as a reader."""
    shipper: "subprocess.Popen[bytes] | None" = None
    """Of the daemon's log."""
    elsewhere: RaftNode | None = None
    """Of another cluster."""
    proxy: Proxy | None = None
    """To everything but this machine."""
    ports: list[int] = field(default_factory=list)
    """Ports to which the name of Sentinel leads, the present one last."""
    bites: int | None = None
    """Effects that a fault counted itself; None = nothing was counted."""

    @property
    def settings(self) -> Settings:
        timeout = f"{_TIMEOUT_SHARE * self.life:g}s"
        timeouts = {"APPJWT_VAULT_TIMEOUT": timeout, "APPJWT_SENTINEL_TIMEOUT": timeout}
        return {**_FAST, **timeouts, **self.changes}

    @property
    def daemon(self) -> Daemon:
        return self.daemons[-1]

    @property
    def vault(self) -> OpenBao:
        return self.vaults[0]

    @property
    def way(self) -> Gate:
        """Return the gate to Vault."""
        assert self.gate
        return self.gate

    @property
    def kv(self) -> Any:
        return self.vault.client.secrets.kv.v2

    def start(self) -> Daemon:
        self.daemons.append(self.scene.daemon(self.settings))
        return self.daemon

    def start_with_shipper(self) -> None:
        """Let the daemon's log go through a pipe to another process."""
        daemon, self.shipper = self.scene.daemon_with_shipper(self.settings)
        self.daemons.append(daemon)

    def kill(self) -> None:
        """Kill the daemon, as a power cut would."""
        self.daemon.process.kill()
        self.daemon.process.wait()

    def run_concurrently(self, count: int, *flags: str) -> list[Done]:
        """Run the same call so many times at once."""
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(lambda _: self.scene.call(*flags, changes=self.settings), range(count)))

    def add_account(self, name: str, region: str = "va") -> None:
        self.watch.accounts[name] = self.scene.add_account(name, region)

    def mark(self) -> Mark:
        """Return the number of log lines of each daemon by now."""
        return {id(daemon): len(daemon.events()) for daemon in self.daemons}

    def lines(self, mark: Mark, *events: str) -> list[Line]:
        """Return the lines logged since then."""
        lines = [line for daemon in self.daemons for line in daemon.events()[mark.get(id(daemon), 0) :]]
        return [line for line in lines if not events or line["event"] in events]

    def wait_until_due(self, before: float) -> None:
        """Wait until so many seconds before the first token is due, by the fields stored with it."""
        while (wait := self._due_in()) < before:
            time.sleep(0.2)  # it is being replaced, or was lost
        time.sleep(wait - before)

    def wait_until_fresh(self, within: float) -> float:
        """Return the seconds until every reader finds as much life as in normal running."""
        began = time.monotonic()
        eventually(lambda: self.watch.fresh(began), within)
        return time.monotonic() - began

    def wait_until_renewed(self, within: float) -> None:
        """Wait until each account has another token than now."""
        before = self.watch.fingerprints()

        def renewed() -> bool:
            now = self.watch.fingerprints()
            return all(now[account] not in (None, before.get(account)) for account in self.watch.accounts)

        eventually(renewed, within)

    def has_live_token(self, account: str) -> bool:
        """Return True if the stored token is live, by the fields stored with it."""
        ends = (self.vault.get_token(account) or {}).get("expires_at")
        return ends is not None and datetime.fromisoformat(ends).timestamp() > time.time()

    def _due_in(self) -> float:
        planned = [(self.vault.get_token(account) or {}).get("refresh_at") for account in self.watch.accounts]
        return min(datetime.fromisoformat(each).timestamp() - time.time() if each else 0.0 for each in planned)


Kind = Callable[[Path], AbstractContextManager[Stand]]


@contextmanager
def _stand(
    folder: Path,
    vaults: Sequence[OpenBao] = (),
    *,
    gated: bool = True,
    ships_log: bool = False,
    changes: Callable[[Scene], Settings] = lambda _: {},
    life: int = LIFE,
    accounts: Mapping[str, str] = ACCOUNTS,
    pause: float = 0.1,
) -> Iterator[Stand]:
    """Set up a stand and wait until its tokens are fresh.

    :param vaults: those that run already; none = a new dev server of the scene.
    :param gated: True = the daemon reaches Vault through a gate, False = over TLS.
    """
    options = {"openbao": vaults[0]} if vaults else {"vault_tls": not gated}
    with ExitStack() as stack:
        scene = stack.enter_context(Scene(folder / "scene", token_life=timedelta(seconds=life), **options))
        vaults = vaults or [scene.openbao]
        gate = stack.enter_context(Gate([vault.address for vault in vaults])) if gated else None
        if gate:
            scene.settings["APPJWT_VAULT_ADDRESS"] = gate.url
        watch = Watch(vaults, scene.liveperson, {}, pause)
        stand = Stand(scene, watch, vaults, life, changes(scene), gate)
        for name, region in accounts.items():
            stand.add_account(name, region)
        if ships_log:
            stand.start_with_shipper()
        else:
            stand.start()
        stack.enter_context(watch)
        stand.rendering = stack.enter_context(Rendering(folder / "agent", vaults[0], list(accounts)[:_RENDERED]))
        stand.wait_until_fresh(60)
        yield stand
        stand.daemon.wait_for("worker.ready")  # it may have been started just now
        stand.daemon.stop()


def direct(folder: Path) -> AbstractContextManager[Stand]:
    """Set up a dev server over TLS."""
    return _stand(folder, gated=False)


def gated(folder: Path) -> AbstractContextManager[Stand]:
    """Set up a dev server behind a gate."""
    return _stand(folder)


def shipped(folder: Path) -> AbstractContextManager[Stand]:
    """Set up a dev server behind a gate, and a daemon whose log another process writes to its file."""
    return _stand(folder, ships_log=True)


def crowded(folder: Path) -> AbstractContextManager[Stand]:
    """Set up a dev server behind a gate, with the default timeouts: what runs here makes a machine slow."""
    return _stand(folder, changes=lambda _: _PATIENT)


def restarted(folder: Path) -> AbstractContextManager[Stand]:
    """Set up the same with lives of a minute: on a busy machine a start takes its time."""
    return _stand(folder, life=LONG_LIFE)


def restarted_directly(folder: Path) -> AbstractContextManager[Stand]:
    return _stand(folder, gated=False, life=LONG_LIFE)


def short_logins(folder: Path) -> AbstractContextManager[Stand]:
    """Set up the same, where a login lives for 3 s and can be renewed for 6."""

    def changes(scene: Scene) -> Settings:
        scene.openbao.approle(ROLE, [ROLE], token_ttl="3s", token_max_ttl="6s")
        return {}

    return _stand(folder, changes=changes)


def few_uses(folder: Path) -> AbstractContextManager[Stand]:
    """Set up the same, where a login may be used 25 times."""

    def changes(scene: Scene) -> Settings:
        scene.openbao.approle(ROLE, [ROLE], token_num_uses=25)
        return {}

    return _stand(folder, changes=changes)


def neighbours(folder: Path) -> AbstractContextManager[Stand]:
    """Set up a dev server over TLS, and one Sentinel host with many accounts for its few slots."""
    names = {f"le{number:08}": "va" for number in range(30)}
    slots = {"APPJWT_SENTINEL_MAX_IN_FLIGHT": "4"}
    return _stand(folder, gated=False, accounts=names, life=LONG_LIFE, changes=lambda _: slots)


@contextmanager
def one_node(folder: Path, **options: Any) -> Iterator[Stand]:
    """Set up a server behind a gate that does not lose its data when it is killed."""
    with RaftNode(folder / "node") as node, _stand(folder, [node], **options) as stand:
        yield stand


def many(folder: Path, *, life: int, accounts: int) -> AbstractContextManager[Stand]:
    """Set up the soak: each account is read about once a second."""
    names = {f"le{number:08}": ("va", "lo")[number % 2] for number in range(accounts)}
    return one_node(folder, life=life, accounts=names, pause=0.5)


@contextmanager
def by_jwt(folder: Path) -> Iterator[Stand]:
    """Set up a login by a JWT in a file, as a pod has it."""
    issuer = Kubernetes()

    def changes(scene: Scene) -> Settings:
        scene.openbao.jwt(ROLE, [ROLE], issuer)
        file = scene.folder / "jwt"
        file.write_text(issuer.token())
        return {
            "APPJWT_VAULT_AUTH_METHOD": "jwt",
            "APPJWT_VAULT_ROLE": ROLE,
            "APPJWT_VAULT_JWT_FILE": str(file),
            "APPJWT_VAULT_ROLE_ID": None,
            "APPJWT_VAULT_SECRET_ID_FILE": None,
        }

    with _stand(folder, changes=changes) as stand:
        yield stand


@contextmanager
def three_nodes(folder: Path) -> Iterator[Stand]:
    """Set up a cluster behind a gate that gives each connection the next node."""
    with Cluster(folder) as cluster, _stand(folder, cluster.nodes) as stand:
        stand.cluster = cluster
        yield stand


@contextmanager
def two_clusters(folder: Path) -> Iterator[Stand]:
    """Set up a server behind a gate, and an empty one elsewhere, with the default timeouts."""
    with (
        RaftNode(folder / "node") as node,
        RaftNode(folder / "elsewhere", seal_key=node.seal_key) as elsewhere,
        _stand(folder, [node], changes=lambda _: _PATIENT) as stand,
    ):
        stand.elsewhere = elsewhere
        yield stand


@contextmanager
def named(folder: Path) -> Iterator[Stand]:
    """Set up a dev server behind a gate, and Sentinel behind a name that can move."""
    ports: list[int] = []

    def changes(scene: Scene) -> Settings:
        hosts = scene.liveperson.hosts
        ports.append(int(hosts["va"].rpartition(":")[2]))
        hosts["va"] = f"localhost:{name.port}"
        return {"APPJWT_SENTINEL_ALLOWED_HOSTS": hosts["va"]}

    with Balancer(lambda: ports[-1]) as name, _stand(folder, changes=changes, accounts=_ALL_IN_VA) as stand:
        stand.ports = ports
        yield stand


@contextmanager
def proxied(folder: Path) -> Iterator[Stand]:
    """Set up a dev server behind a gate, in clear, and LivePerson behind a proxy of the environment for all URLs."""

    def changes(scene: Scene) -> Settings:
        liveperson = scene.liveperson
        api, va = (
            f"{name}.proxied.invalid:{url.rpartition(':')[2]}"
            for name, url in (("api", liveperson.domain_api), ("va", liveperson.hosts["va"]))
        )
        liveperson.hosts["va"] = va
        return {
            "APPJWT_SENTINEL_DOMAIN_API": f"https://{api}",
            "APPJWT_SENTINEL_ALLOWED_HOSTS": va,
            "HTTPS_PROXY": proxy.url,
            "HTTP_PROXY": proxy.url,
        }

    with Proxy() as proxy, _stand(folder, changes=changes, accounts=_ALL_IN_VA) as stand:
        stand.proxy = proxy
        yield stand


def paged(folder: Path) -> AbstractContextManager[Stand]:
    """Set up a dev server behind a gate, whose policy shows five names of twelve at a time."""

    def changes(scene: Scene) -> Settings:
        scene.openbao.policy(ROLE, _PAGED)
        return {}

    return _stand(folder, changes=changes, accounts={f"le{number:08}": "va" for number in range(12)})


def clocked(folder: Path, life: int = LIFE) -> AbstractContextManager[Stand]:
    """Set up daemons whose wall clock is shifted by the content of the scene's file `clock`."""

    def changes(scene: Scene) -> Settings:
        return faketime(scene.folder / "clock")

    return _stand(folder, changes=changes, life=life)


def clocked_and_restarted(folder: Path) -> AbstractContextManager[Stand]:
    return clocked(folder, LONG_LIFE)
