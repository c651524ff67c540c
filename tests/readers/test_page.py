"""Statements of docs/reading-tokens.md, and the forms of the examples whose readers do not run here."""

import re
import subprocess
from collections.abc import Mapping

import pytest
import yaml

from tests.readers.stand import EXAMPLES, ROOT, Vault
from worker.core.plan import RefreshPolicy, Validity

ACCOUNT = "le81823118"
PAGE = (ROOT / "docs" / "reading-tokens.md").read_text()

FIELDS: Mapping[str, Mapping[str, str]] = {
    "ExternalSecret": {
        "spec": "secretStoreRef target refreshPolicy refreshInterval data dataFrom",
        "secretStoreRef": "name kind",
        "target": "name creationPolicy deletionPolicy template immutable manifest",
        "data": "secretKey remoteRef sourceRef",
        "remoteRef": "key metadataPolicy property version conversionStrategy decodingStrategy",
    },
    "SecretStore": {
        "spec": "controller provider retrySettings refreshInterval conditions",
        "provider": "vault",
        "vault": "auth server path version namespace caBundle tls caProvider readYourWrites headers",
        "auth": "namespace tokenSecretRef appRole kubernetes ldap jwt cert iam userPass gcp",
        "kubernetes": "mountPath serviceAccountRef secretRef role",
        "serviceAccountRef": "name namespace audiences",
    },
    "VaultStaticSecret": {
        "spec": "vaultAuthRef namespace refreshAfter hmacSecretData rolloutRestartTargets destination syncConfig"
        " mount path version type",
        "destination": "name create overwrite labels annotations type transformation",
        "transformation": "templates transformationRefs includes excludes excludeRaw",
    },
}
"""By kind and table the fields that the operators' API references name."""


@pytest.mark.parametrize(
    ("file", "kinds"),
    [
        ("vault-secrets-operator.yaml", ["VaultStaticSecret"]),
        ("external-secrets.yaml", ["SecretStore", "ExternalSecret"]),
    ],
)
def test_an_operators_example_has_fields_that_exist_and_reads_the_path_that_the_worker_writes(
    file: str, kinds: list[str]
) -> None:
    objects = list(yaml.safe_load_all((EXAMPLES / file).read_text()))
    assert [each["kind"] for each in objects] == kinds

    def check(name: str, value: object, known: Mapping[str, str]) -> None:
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, dict):
                assert each.keys() <= set(known[name].split()), name
                for key, inner in each.items():
                    check(key, inner, known)

    for each in objects:
        check("spec", each["spec"], FIELDS[each["kind"]])
    assert f"liveperson/tokens/{ACCOUNT}" in str(objects[-1]["spec"])


def test_the_external_secrets_example_names_its_own_store_and_kv_version_2() -> None:
    store, secret = yaml.safe_load_all((EXAMPLES / "external-secrets.yaml").read_text())
    assert secret["spec"]["secretStoreRef"] == {"kind": store["kind"], "name": store["metadata"]["name"]}
    vault = store["spec"]["provider"]["vault"]
    assert (vault["path"], vault["version"]) == ("secret", "v2")


def test_who_reads_a_token_has_27_minutes_left_while_all_is_well() -> None:
    hour = Validity(0.0, 3600.0)
    policy = RefreshPolicy(0.5, 0.05, "a")
    latest = max(policy.refresh_at(f"le{number}", hour) for number in range(2000))
    assert 3600.0 - latest >= 27 * 60


def test_the_page_names_every_example_and_they_exist() -> None:
    assert {*re.findall(r"\(\.\./examples/(.*?)\)", PAGE)} == {
        file.name for file in EXAMPLES.iterdir() if file.is_file()
    }


@pytest.mark.tool("curl")
def test_the_calls_to_liveperson_work_as_the_page_shows_them(vault: Vault) -> None:
    """Word for word, but for the hosts, against a local LivePerson."""
    vault.refresh(ACCOUNT)
    section = PAGE.partition("## How to send it\n")[2].partition("\n## ")[0]
    script = "\n".join(line.removeprefix("    ") for line in section.splitlines() if line.startswith("    "))
    for service in ("{idp}", "{asyncMessagingEnt}"):
        script = script.replace(service, vault.world.liveperson.hosts["va"])
    environment = {**vault.environment(ACCOUNT), "CURL_CA_BUNDLE": str(vault.world.liveperson.ca_file)}
    done = subprocess.run(
        ["sh", "-euc", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert '"code": "OK"' in done.stdout
    statuses = [(seen.service, seen.status) for seen in vault.world.liveperson.seen if seen.service in ("idp", "send")]
    assert statuses == [("idp", 201), ("send", 200)]
