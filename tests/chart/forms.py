"""The fields of operators' objects, as their public API references name them.

Prometheus Operator 0.91 (monitoring.coreos.com/v1), External Secrets Operator (external-secrets.io/v1) and Vault
Secrets Operator (secrets.hashicorp.com/v1beta1). Kubernetes silently drops a field that it does not know.
"""

import re
from collections.abc import Iterator
from typing import Any, Final

_TEXTS: Final = {str: str}
_DURATION: Final = re.compile(r"(\d+(ms|[smhdwy]))+")
_SELECTOR: Final = {"matchLabels": _TEXTS, "matchExpressions": [{"key*": str, "operator*": str, "values": [str]}]}
_RELABELING: Final = {
    "action": re.compile(
        "replace|keep|drop|hashmod|labelmap|labeldrop|labelkeep|lowercase|uppercase|keepequal|dropequal", re.IGNORECASE
    ),
    "modulus": int,
    "regex": str,
    "replacement": str,
    "separator": str,
    "sourceLabels": [str],
    "targetLabel": str,
}
_ENDPOINT: Final = {
    "port": str,
    "path": str,
    "scheme": re.compile("https?", re.IGNORECASE),
    "params": {str: [str]},
    "interval": _DURATION,
    "scrapeTimeout": _DURATION,
    "honorLabels": bool,
    "honorTimestamps": bool,
    "trackTimestampsStaleness": bool,
    "relabelings": [_RELABELING],
    "metricRelabelings": [_RELABELING],
    "filterRunning": bool,
    "followRedirects": bool,
    "enableHttp2": bool,
}
_MONITOR: Final = {
    "selector*": _SELECTOR,
    "namespaceSelector": {"any": bool, "matchNames": [str]},
    "jobLabel": str,
    "podTargetLabels": [str],
    "sampleLimit": int,
    "targetLimit": int,
    "labelLimit": int,
    "bodySizeLimit": str,
    "scrapeClass": str,
}
_RULE: Final = {
    "alert": str,
    "record": str,
    "expr*": str,
    "for": _DURATION,
    "keep_firing_for": _DURATION,
    "labels": _TEXTS,
    "annotations": _TEXTS,
}
_GROUP: Final = {
    "name*": str,
    "interval": _DURATION,
    "labels": _TEXTS,
    "limit": int,
    "query_offset": _DURATION,
    "partial_response_strategy": re.compile("abort|warn", re.IGNORECASE),
    "rules": [_RULE],
}
_REMOTE: Final = {
    "key*": str,
    "property": str,
    "version": str,
    "conversionStrategy": str,
    "decodingStrategy": str,
    "metadataPolicy": str,
}
_EXTERNAL_SECRET: Final = {
    "refreshInterval": _DURATION,
    "refreshPolicy": re.compile("CreatedOnce|Periodic|OnChange"),
    "secretStoreRef": {"name*": str, "kind": re.compile("SecretStore|ClusterSecretStore")},
    "target": {"name": str, "creationPolicy": str, "deletionPolicy": str, "immutable": bool, "template": dict},
    "data": [{"secretKey*": str, "remoteRef*": _REMOTE, "sourceRef": dict}],
    "dataFrom": [dict],
}
_ACCOUNT: Final = {"name*": str, "namespace": str, "audiences": [str]}
_SECRET_KEY: Final = {"name": str, "namespace": str, "key": str}
_SECRET_STORE: Final = {
    "provider*": {
        "vault": {
            "server*": str,
            "path": str,
            "version": re.compile("v[12]"),
            "namespace": str,
            "caBundle": str,
            "caProvider": {"type*": str, "name*": str, "key": str, "namespace": str},
            "headers": _TEXTS,
            "forwardInconsistent": bool,
            "readYourWrites": bool,
            "tls": dict,
            "auth": {
                "kubernetes": {
                    "mountPath": str,
                    "role*": str,
                    "serviceAccountRef": _ACCOUNT,
                    "secretRef": _SECRET_KEY,
                },
                "appRole": {"path": str, "roleId": str, "roleRef": _SECRET_KEY, "secretRef*": _SECRET_KEY},
                "jwt": dict,
                "tokenSecretRef": _SECRET_KEY,
                "namespace": str,
            },
        }
    },
    "controller": str,
    "refreshInterval": int,
    "retrySettings": dict,
    "conditions": [dict],
}
_VAULT_STATIC_SECRET: Final = {
    "vaultAuthRef": str,
    "namespace": str,
    "mount*": str,
    "path*": str,
    "type*": re.compile("kv-v[12]"),
    "version": int,
    "refreshAfter": re.compile(r"[0-9]+(\.[0-9]+)?(s|m|h)"),
    "hmacSecretData": bool,
    "rolloutRestartTargets": [{"kind*": str, "name*": str}],
    "syncConfig": {"instantUpdates": bool},
    "destination*": {
        "name*": str,
        "create": bool,
        "overwrite": bool,
        "labels": _TEXTS,
        "annotations": _TEXTS,
        "type": str,
        "transformation": {
            "excludeRaw": bool,
            "excludes": [str],
            "includes": [str],
            "templates": {str: {"name": str, "text*": str}},
            "transformationRefs": [dict],
        },
    },
}
_VAULT_AUTH: Final = {
    "vaultConnectionRef": str,
    "vaultAuthGlobalRef": dict,
    "namespace": str,
    "allowedNamespaces": [str],
    "method": re.compile("kubernetes|jwt|appRole|aws|gcp"),
    "mount": str,
    "params": _TEXTS,
    "headers": _TEXTS,
    "kubernetes": {"role": str, "serviceAccount": str, "audiences": [str], "tokenExpirationSeconds": int},
    "appRole": {"roleId": str, "secretRef": str},
    "jwt": dict,
    "storageEncryption": dict,
}
_VAULT_CONNECTION: Final = {
    "address*": str,
    "headers": _TEXTS,
    "tlsServerName": str,
    "caCertSecretRef": str,
    "skipTLSVerify": bool,
    "timeout": str,
}
FORMS: Final[dict[tuple[str, str], Any]] = {
    ("monitoring.coreos.com/v1", "PodMonitor"): {
        **_MONITOR,
        "podMetricsEndpoints": [{**_ENDPOINT, "portNumber": int}],
    },
    ("monitoring.coreos.com/v1", "ServiceMonitor"): {**_MONITOR, "targetLabels": [str], "endpoints*": [_ENDPOINT]},
    ("monitoring.coreos.com/v1", "PrometheusRule"): {"groups": [_GROUP]},
    ("external-secrets.io/v1", "ExternalSecret"): _EXTERNAL_SECRET,
    ("external-secrets.io/v1", "SecretStore"): _SECRET_STORE,
    ("external-secrets.io/v1", "ClusterSecretStore"): _SECRET_STORE,
    ("secrets.hashicorp.com/v1beta1", "VaultStaticSecret"): _VAULT_STATIC_SECRET,
    ("secrets.hashicorp.com/v1beta1", "VaultAuth"): _VAULT_AUTH,
    ("secrets.hashicorp.com/v1beta1", "VaultConnection"): _VAULT_CONNECTION,
}
"""The form of `spec`. A star marks a field that must be there, a pattern a text, `{str: …}` a map, `dict` anything."""


def misfits(made: dict[str, Any]) -> list[str]:
    """Return what of an object its operator would refuse or drop."""
    form = FORMS.get((made["apiVersion"], made["kind"]))
    return [*_misfits(form, made["spec"], "spec")] if form else [f"no such object: {made['apiVersion']} {made['kind']}"]


def _misfits(form: Any, value: Any, path: str) -> Iterator[str]:
    if isinstance(form, re.Pattern):
        if not (isinstance(value, str) and form.fullmatch(value)):
            yield f"{path}: {value!r} does not match {form.pattern}"
    elif isinstance(form, type):
        if not isinstance(value, form) or (form is int and isinstance(value, bool)):
            yield f"{path}: {value!r} is no {form.__name__}"
    elif not isinstance(value, type(form)):
        yield f"{path}: {value!r} is no {type(form).__name__}"
    elif isinstance(form, list):
        for number, each in enumerate(value):
            yield from _misfits(form[0], each, f"{path}[{number}]")
    else:
        known = {key.rstrip("*"): of for key, of in form.items() if key is not str}
        yield from (
            f"{path}.{key[:-1]} is missing"
            for key in form
            if key is not str and key[-1] == "*" and key[:-1] not in value
        )
        for key, each in value.items():
            if key in known or str in form:
                yield from _misfits(known.get(key, form.get(str)), each, f"{path}.{key}")
            else:
                yield f"{path}.{key}: there is no such field"
