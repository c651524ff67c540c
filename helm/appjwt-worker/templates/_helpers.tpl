{{- define "appjwt-worker.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "appjwt-worker.fullname" -}}
{{- $name := include "appjwt-worker.name" . -}}
{{- $own := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- .Values.fullnameOverride | default $own | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "appjwt-worker.namespace" -}}
{{- .Values.namespaceOverride | default .Release.Namespace -}}
{{- end -}}

{{- define "appjwt-worker.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (include "appjwt-worker.fullname" .) -}}
{{- end -}}

{{/* A version as a label's value: SemVer's + is not allowed there. */}}
{{- define "appjwt-worker.labelValue" -}}
{{- . | replace "+" "_" | trunc 63 | regexFind "^.*[A-Za-z0-9]" -}}
{{- end -}}

{{/* Labels that never change; the daemon's pods also have the component `worker`. */}}
{{- define "appjwt-worker.selector" -}}
app.kubernetes.io/name: {{ include "appjwt-worker.name" . }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "appjwt-worker.workerSelector" -}}
{{ include "appjwt-worker.selector" . }}
app.kubernetes.io/component: worker
{{- end -}}

{{/* The chart's labels, then these, then commonLabels; the first of a key wins: (list $ labels…). */}}
{{- define "appjwt-worker.labels" -}}
{{- $root := first . -}}
{{- $labels := include "appjwt-worker.selector" $root | fromYaml -}}
{{- $_ := set $labels "app.kubernetes.io/version" (include "appjwt-worker.labelValue" $root.Chart.AppVersion) -}}
{{- $_ := set $labels "app.kubernetes.io/managed-by" $root.Release.Service -}}
{{- $chart := printf "%s-%s" $root.Chart.Name $root.Chart.Version -}}
{{- $_ := set $labels "helm.sh/chart" (include "appjwt-worker.labelValue" $chart) -}}
{{- range append (rest .) $root.Values.commonLabels -}}
{{- $labels = merge $labels (. | default dict) -}}
{{- end -}}
{{- toYaml $labels -}}
{{- end -}}

{{/* Metadata of an object, whose labels and annotations are among these values: (list $ suffix values). */}}
{{- define "appjwt-worker.metadata" -}}
{{- $root := index . 0 -}}
{{- $of := index . 2 -}}
name: {{ include "appjwt-worker.fullname" $root }}{{ index . 1 }}
namespace: {{ include "appjwt-worker.namespace" $root | quote }}
labels:
  {{- include "appjwt-worker.labels" (list $root $of.labels) | nindent 2 }}
{{- with $of.annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Fields for those of these values that are set: (list values name…). */}}
{{- define "appjwt-worker.fields" -}}
{{- $values := first . -}}
{{- $set := dict -}}
{{- range rest . -}}
{{- if index $values . }}{{ $_ := set $set . (index $values .) }}{{ end -}}
{{- end -}}
{{- with $set }}{{ toYaml . }}{{ end -}}
{{- end -}}

{{- define "appjwt-worker.image" -}}
{{- with .Values.global.imageRegistry }}{{ trimSuffix "/" . }}/{{ end -}}
{{- .Values.image.repository -}}
{{- with .Values.image.digest }}@{{ . }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion | replace "+" "_" }}{{ end -}}
{{- end -}}

{{- define "appjwt-worker.listen" -}}
{{- dig "http" "listen" "[::]:8080" .Values.settings -}}
{{- end -}}

{{- define "appjwt-worker.httpPort" -}}
{{- include "appjwt-worker.listen" . | regexFind "[0-9]+$" -}}
{{- end -}}

{{/* The Secrets that are mounted as folders, by the folder's name. */}}
{{- define "appjwt-worker.secrets" -}}
{{- range $folder, $of := dict "vault-ca" .Values.vaultCA "vault-client" .Values.vaultClientCert "sentinel-ca" .Values.sentinelCA "approle" .Values.approle }}
{{- with $of.secretName }}
{{ $folder }}: {{ . | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The worker's settings: the user's, and below them what the chart knows of the pod. */}}
{{- define "appjwt-worker.settings" -}}
{{- $_ := required "settings.vault.address: set it to your Vault's address, such as https://vault.example.com:8200" (dig "vault" "address" "" .Values.settings) -}}
{{- $vault := dict "jwt_file" "/var/run/secrets/vault/token" -}}
{{- $sentinel := dict -}}
{{- if .Values.vaultCA.secretName -}}
{{- $_ := set $vault "ca_cert" (printf "/etc/appjwt-worker/vault-ca/%s" .Values.vaultCA.key) -}}
{{- end -}}
{{- with .Values.vaultClientCert -}}
{{- if .secretName -}}
{{- $_ := set $vault "client_cert" (printf "/etc/appjwt-worker/vault-client/%s" .certKey) -}}
{{- $_ := set $vault "client_key" (printf "/etc/appjwt-worker/vault-client/%s" .keyKey) -}}
{{- end -}}
{{- end -}}
{{- if .Values.approle.secretName -}}
{{- $_ := set $vault "auth_method" "approle" -}}
{{- $_ := set $vault "secret_id_file" (printf "/etc/appjwt-worker/approle/%s" .Values.approle.key) -}}
{{- end -}}
{{- if .Values.sentinelCA.secretName -}}
{{- $_ := set $sentinel "ca_cert" (printf "/etc/appjwt-worker/sentinel-ca/%s" .Values.sentinelCA.key) -}}
{{- end -}}
{{- $known := dict "vault" $vault "http" (dict "listen" (include "appjwt-worker.listen" .)) "log" (dict "format" "json") -}}
{{- with $sentinel -}}
{{- $_ := set $known "sentinel" . -}}
{{- end -}}
{{- merge (deepCopy .Values.settings) $known | toToml -}}
{{- end -}}

{{- define "appjwt-worker.imagePullSecrets" -}}
{{- $secrets := list -}}
{{- range concat (.Values.global.imagePullSecrets | default list) (.Values.imagePullSecrets | default list) -}}
{{- $secrets = append $secrets (kindIs "string" . | ternary (dict "name" .) .) -}}
{{- end -}}
{{- with $secrets | uniq }}{{ toYaml (dict "imagePullSecrets" .) }}{{ end -}}
{{- end -}}

{{/* A security context; OpenShift gives the ids itself: (list $ context). */}}
{{- define "appjwt-worker.securityContext" -}}
{{- $context := index . 1 | default dict -}}
{{- if (first .).Values.openshift }}{{ $context = omit $context "runAsUser" "runAsGroup" "fsGroup" }}{{ end -}}
{{- toYaml $context -}}
{{- end -}}

{{/* What the daemon's pods and the test's pod have in common. */}}
{{- define "appjwt-worker.pod" -}}
serviceAccountName: {{ include "appjwt-worker.serviceAccountName" . | quote }}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ .Values.terminationGracePeriodSeconds | int64 }}
securityContext:
  {{- include "appjwt-worker.securityContext" (list . .Values.podSecurityContext) | nindent 2 }}
{{ include "appjwt-worker.imagePullSecrets" . }}
{{ include "appjwt-worker.fields" (list .Values "initContainers" "nodeSelector" "tolerations" "priorityClassName" "schedulerName" "runtimeClassName" "hostAliases" "dnsPolicy" "dnsConfig") }}
volumes:
  - name: config
    configMap:
      name: {{ include "appjwt-worker.fullname" . }}
  - name: vault-token
    projected:
      sources:
        - serviceAccountToken:
            path: token
            audience: {{ .Values.vaultToken.audience | quote }}
            expirationSeconds: {{ .Values.vaultToken.expirationSeconds | int64 }}
  {{- range $folder, $secret := include "appjwt-worker.secrets" . | fromYaml }}
  - name: {{ $folder }}
    secret:
      secretName: {{ $secret | quote }}
      defaultMode: 0440
  {{- end }}
  {{- with .Values.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* The worker's container, with these arguments before extraArgs: (list $ argument…). */}}
{{- define "appjwt-worker.container" -}}
{{- $args := rest . -}}
{{- with first . -}}
{{- $headers := list -}}
{{- with .Values.vaultHeaders -}}
{{- if .secretName -}}
{{- $from := dict "secretKeyRef" (dict "name" .secretName "key" .key) -}}
{{- $headers = list (dict "name" "APPJWT_VAULT_HEADERS" "valueFrom" $from) -}}
{{- end -}}
{{- end -}}
name: appjwt-worker
image: {{ include "appjwt-worker.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- with concat $args (.Values.extraArgs | default list) }}
args:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- include "appjwt-worker.securityContext" (list . .Values.securityContext) | nindent 2 }}
{{ include "appjwt-worker.fields" (list .Values "resources" "envFrom") }}
{{- with concat $headers (.Values.extraEnv | default list) }}
env:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumeMounts:
  - name: config
    mountPath: /etc/appjwt-worker/worker.toml
    subPath: worker.toml
    readOnly: true
  - name: vault-token
    mountPath: /var/run/secrets/vault
    readOnly: true
  {{- range $folder, $_ := include "appjwt-worker.secrets" . | fromYaml }}
  - name: {{ $folder }}
    mountPath: /etc/appjwt-worker/{{ $folder }}
    readOnly: true
  {{- end }}
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}
{{- end -}}

{{/* How Prometheus scrapes, for both kinds of monitor: its values. */}}
{{- define "appjwt-worker.endpoint" -}}
port: http
path: /metrics
{{ include "appjwt-worker.fields" (list . "interval" "scrapeTimeout" "honorLabels" "relabelings" "metricRelabelings") }}
{{- end -}}
