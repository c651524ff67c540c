"""Three OpenBao nodes and two workers, each in a separate network, and the ways between them cut, flapping and slow.

Meanwhile strangers write, delete and undelete at the tokens' paths, through any node. The outcome is judged by Vault's
audit file.
"""

import itertools
import secrets
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from random import Random
from threading import Event

import requests

from tests.chaos.history import Outage, Result, events, judge
from tests.chaos.network import PORT, Forwarder, Link, Network, Space, SpacedCluster
from tests.integration.processes import Daemon, Scene, Settings, eventually
from tests.simulation.ownership import MANAGED_BY

LIFE = 20
"""Seconds that a token lives."""
NODES, WORKERS, OTHERS = (1, 2, 3), (4, 5), 6
"""The networks. In the last one are strangers, readers, and LivePerson."""
_QUIET = [f"le1000000{number}" for number in range(6)]
_TOUCHED = [f"le2000000{number}" for number in range(6)]
"""Accounts at whose paths strangers write."""
_NEW_AT_ONCE = 6
"""Accounts that are added while strangers write at their paths; then the first one is removed."""
_PARTS = 6
"""Threads: strangers, a reader, and a probe for each worker."""
_LONG = 1.3
"""Share of a token's life."""
_AT_THE_LEADER = 0.7
"""Of the faults at one node."""
_PATIENCE = 1.0
"""Seconds for an answer."""
_UNUSABLE, _USABLE = 2.5, 5.0
"""Seconds without a write that make an outage, and with writes that end it."""


@dataclass
class Vault:
    """Vault as strangers and probes use it: each call to another node, on a new connection."""

    urls: Sequence[str]
    token: str
    chance: Random

    def call(self, method: str, path: str, body: object = None) -> requests.Response | None:
        """Send one request; None = no answer, and the outcome is unknown."""
        headers = {"X-Vault-Token": self.token}
        if method == "PATCH":
            headers["Content-Type"] = "application/merge-patch+json"
        url = f"{self.chance.choice(self.urls)}/v1/secret/{path}"
        with suppress(requests.RequestException), requests.Session() as session:
            session.trust_env = False
            return session.request(method, url, json=body, headers=headers, timeout=_PATIENCE, allow_redirects=False)
        return None


@dataclass
class Stage:
    scene: Scene
    network: Network
    cluster: SpacedCluster
    vault: Vault
    """For who is in OTHERS."""
    chance: Random
    over: Event
    written: list[float] = field(default_factory=list)
    """Moments at which a probe's write succeeded."""
    counts: Counter[str] = field(default_factory=Counter)
    new: deque[str] = field(default_factory=deque)

    # Strangers and readers

    def be_a_stranger(self) -> None:
        while not self.over.wait(self.chance.uniform(0.1, 0.6)):
            name = self.chance.choice([*_TOUCHED, *self.new])
            self.counts["strangers' acts"] += 1
            self._act(name)

    def be_new(self) -> None:
        """Add accounts, while a stranger writes at the path of each."""
        number = 0
        while not self.over.wait(self.chance.uniform(2, 6)):
            number += 1
            name = f"le3{number:07}"
            self.new.append(name)
            credentials = self.scene.liveperson.add_account(name)
            self.scene.secrets.append(credentials.client_secret)
            write = partial(self.vault.call, "POST", f"data/liveperson/accounts/{name}", {"data": asdict(credentials)})
            steps: list[Callable[[], object]] = [write, partial(self._write, name)]
            self.chance.shuffle(steps)
            for step in steps:
                step()
                time.sleep(self.chance.choice([0.0, 0.1, 0.5, 1.5]))
            while len(self.new) > _NEW_AT_ONCE and self._remove_account(self.new[0]):
                self.new.popleft()

    def _remove_account(self, name: str) -> bool:
        answer = self.vault.call("DELETE", f"metadata/liveperson/accounts/{name}")
        return answer is not None and answer.ok

    def be_a_reader(self) -> None:
        while not self.over.wait(0.2):
            for name in _QUIET:
                self.counts["reads"] += self.vault.call("GET", f"data/liveperson/tokens/{name}") is not None

    def probe(self, vault: Vault) -> None:
        """Write again and again from a worker's network, and record each success."""
        while not self.over.wait(0.2):
            answer = vault.call("POST", "data/probe", {"data": {"x": "y"}})
            if answer is not None and answer.ok:
                self.written.append(time.time())

    def is_fresh(self, name: str) -> bool:
        answer = self.vault.call("GET", f"data/liveperson/tokens/{name}")
        return bool(answer and answer.ok and float(answer.json()["data"]["data"]["exp"]) > time.time() + 0.4 * LIFE)

    def _write(self, name: str) -> requests.Response | None:
        options = self.chance.choice([{}, {"cas": 0}])
        body = {"data": {"password": secrets.token_hex(8)}, "options": options}
        return self.vault.call("POST", f"data/liveperson/tokens/{name}", body)

    def _act(self, name: str) -> None:
        path, call = f"liveperson/tokens/{name}", self.vault.call
        answer = call("GET", f"data/{path}")
        if answer is None or answer.status_code not in (200, 404) or not (data := answer.json().get("data")):
            return  # there is nothing
        version = {"versions": [data["metadata"]["version"]]}
        acts: dict[Callable[[], object], int] = {
            partial(self._write, name): 5,
            partial(call, "DELETE", f"data/{path}"): 2,
            partial(call, "POST", f"undelete/{path}", version): 2,
            partial(call, "PUT", f"destroy/{path}", version): 1,
            lambda: call("DELETE", f"metadata/{path}") and self._write(name): 1,
            partial(call, "PATCH", f"metadata/{path}", {"custom_metadata": {"managed_by": None}}): 1,
            partial(call, "PATCH", f"metadata/{path}", {"custom_metadata": {"managed_by": MANAGED_BY}}): 2,
        }
        self.chance.choices([*acts], [*acts.values()])[0]()

    # Faults

    def break_things(self, seconds: float) -> list[str]:
        """Inject one fault after another until the time is over, each kind once per round; return their names."""
        done: list[str] = []
        waiting: list[str] = []
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0 and not self.over.is_set():
            faults = self._faults()
            waiting = waiting or self.chance.sample(list(faults), len(faults))
            name = waiting.pop()
            fault, share = faults[name]
            if share == _LONG and share * LIFE > left / 2:
                continue
            done.append(name)
            with fault():
                self.over.wait(share * LIFE)
            self.over.wait(self.chance.uniform(0.05, 0.4) * LIFE)
        return done

    def _faults(self) -> dict[str, tuple[Callable[[], AbstractContextManager[None]], float]]:
        """Return each fault and its share of a token's lifetime; those of one node mostly hit the leader."""
        chance, network = self.chance, self.network
        numbers = [number for number, node in zip(NODES, self.cluster.nodes, strict=True) if node.is_active()]
        one = numbers[0] if numbers and chance.random() < _AT_THE_LEADER else chance.choice(NODES)
        others = [number for number in NODES if number != one]
        worker = chance.choice(WORKERS)
        among_nodes = set(itertools.permutations(NODES, 2))
        every = set(itertools.permutations([*NODES, *WORKERS], 2))
        links: dict[str, set[Link]] = {
            "a node cut off from the others": {link for link in among_nodes if one in link},
            "a node unheard by the others": {(one, other) for other in others},
            "a node that hears none of the others": {(other, one) for other in others},
            "two nodes cut apart": {(one, others[0]), (others[0], one)},
            "a worker unheard by Vault": {(worker, node) for node in NODES},
            "a worker that hears no answer": {(node, worker) for node in NODES},
            "both workers on the side of one node": {
                *(link for link in among_nodes if one in link),
                *((worker, other) for worker in WORKERS for other in others),
            },
        }
        length = partial(chance.uniform, 0.1, 0.35)
        return {
            **{name: (partial(network.cut, cut), chance.choice([length(), _LONG])) for name, cut in links.items()},
            "all nodes cut apart": (partial(network.cut, among_nodes), _LONG),
            "everything flapping": (partial(network.flapping, every, chance), length()),
            "everything slow": (partial(network.delayed, every, chance), length()),
        }

    def outages(self) -> list[Outage]:
        """Return the times in which no probe could write for so long that a worker could not either."""
        gaps = [gap for gap in itertools.pairwise(sorted(self.written)) if gap[1] - gap[0] > _UNUSABLE]
        joined: list[Outage] = []
        for started, over in gaps:
            if joined and started - joined[-1][1] < _USABLE:
                joined[-1] = (joined[-1][0], over)
            else:
                joined.append((started, over))
        return joined


def partition(folder: Path, seconds: float, seed: int) -> Result:
    """Run the scenario in a thread of its namespace; whatever is left of it when the networks close is stopped."""
    over = Event()
    with Network(OTHERS) as network:
        try:
            return network.spaces[OTHERS].do(partial(_partition, folder, network, seconds, seed, over))
        finally:
            over.set()


def _partition(folder: Path, network: Network, seconds: float, seed: int, over: Event) -> Result:
    with ExitStack() as stack:
        nodes = [network.spaces[number] for number in NODES]
        cluster = stack.enter_context(SpacedCluster(folder, nodes))
        scene = Scene(folder / "scene", token_life=timedelta(seconds=LIFE), openbao=cluster.nodes[0])
        stack.enter_context(scene)
        for name in (*_QUIET, *_TOUCHED):
            scene.add_account(name)
        chance = Random(seed)
        vault = Vault([node.address for node in cluster.nodes], cluster.nodes[0].root_token, chance)
        stage = Stage(scene, network, cluster, vault, chance, over)
        workers = {number: network.spaces[number] for number in WORKERS}
        links = {number: Forwarder([(node.address, PORT) for node in nodes]) for number in WORKERS}
        for number, link in links.items():
            workers[number].do(partial(stack.enter_context, link))
        daemons = [
            _worker(stack, scene, workers[number], f"worker-{number}", link.url) for number, link in links.items()
        ]
        eventually(lambda: all(stage.is_fresh(name) for name in (*_QUIET, *_TOUCHED)))
        with ThreadPoolExecutor(_PARTS) as pool:
            parts = [stage.be_a_stranger, stage.be_a_stranger, stage.be_new, stage.be_a_reader]
            running = [pool.submit(part) for part in parts]
            for number, link in links.items():  # a thread is in the space of who started it
                probe = partial(stage.probe, Vault([link.url], vault.token, chance))
                running.append(workers[number].do(partial(pool.submit, probe)))
            try:
                faults = stage.break_things(seconds)
                with suppress(TimeoutError):  # then some are expired, which is found below
                    eventually(lambda: all(stage.is_fresh(name) for name in _QUIET), LIFE)
            finally:
                stage.over.set()
        for part in running:
            part.result()
        until = time.time()
        for daemon in daemons:
            daemon.stop()
        verdict = judge(events(cluster.nodes[0].audit_file), _QUIET, stage.outages(), until)
        verdict.counts += stage.counts
        for daemon in daemons:
            verdict.counts["attempts that failed"] += len(daemon.events("refresh.failed"))
            verdict.problems += map(str, daemon.events("worker.internal_error"))
        return Result(seconds, seed, LIFE, faults, verdict, stage.outages())


def _worker(stack: ExitStack, scene: Scene, space: Space, name: str, vault: str) -> Daemon:
    """Start a daemon in the space, with a separate login and forwarders to LivePerson."""
    role_id, secret_id = scene.openbao.approle(name, ["appjwt-worker"])
    scene.secrets.append(secret_id)
    file = scene.folder / name
    file.write_text(secret_id)
    for url in (scene.liveperson.domain_api, *scene.liveperson.hosts.values()):
        there = ("127.0.0.1", int(url.rpartition(":")[2]))
        stack.enter_context(Forwarder([there], space.do(partial(socket.create_server, there))))
    settings: Settings = {
        "APPJWT_VAULT_ADDRESS": vault,
        "APPJWT_VAULT_ROLE_ID": role_id,
        "APPJWT_VAULT_SECRET_ID_FILE": str(file),
        "APPJWT_VAULT_TIMEOUT": f"{_PATIENCE:g}s",
        "APPJWT_SENTINEL_TIMEOUT": f"{_PATIENCE:g}s",
        "APPJWT_TOKENS_RESYNC_INTERVAL": "1s",
    }
    return space.do(partial(scene.daemon, settings))
