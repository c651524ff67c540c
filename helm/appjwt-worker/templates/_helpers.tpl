{{- define "appjwt-worker.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "appjwt-worker.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "appjwt-worker.labels" -}}
{{ include "appjwt-worker.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "appjwt-worker.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (include "appjwt-worker.fullname" .) -}}
{{- end -}}

{{- define "appjwt-worker.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository ($image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* The worker's settings: what the user says, and what the chart knows of the pod. The user's word wins. */}}
{{- define "appjwt-worker.settings" -}}
{{- $settings := deepCopy .Values.settings -}}
{{- $vault := $settings.vault | default dict -}}
{{- $_ := required "settings.vault.address: set it to your Vault's address, such as https://vault.example.com:8200" $vault.address -}}
{{- $known := dict "jwt_file" "/var/run/secrets/vault/token" -}}
{{- if .Values.vaultCA.secretName -}}
{{- $_ := set $known "ca_cert" (printf "/etc/appjwt-worker/vault-ca/%s" .Values.vaultCA.key) -}}
{{- end -}}
{{- if .Values.approle.secretName -}}
{{- $_ := set $known "auth_method" "approle" -}}
{{- $_ := set $known "secret_id_file" (printf "/etc/appjwt-worker/approle/%s" .Values.approle.key) -}}
{{- end -}}
{{- $_ := set $settings "vault" (merge $vault $known) -}}
{{- if .Values.sentinelCA.secretName -}}
{{- $ca := dict "ca_cert" (printf "/etc/appjwt-worker/sentinel-ca/%s" .Values.sentinelCA.key) -}}
{{- $_ := set $settings "sentinel" (merge ($settings.sentinel | default dict) $ca) -}}
{{- end -}}
{{- $_ := set $settings "http" (merge ($settings.http | default dict) (dict "listen" "0.0.0.0:8080")) -}}
{{- $_ := set $settings "log" (merge ($settings.log | default dict) (dict "format" "json")) -}}
{{- toToml $settings -}}
{{- end -}}

{{- define "appjwt-worker.httpPort" -}}
{{- $http := .Values.settings.http | default dict -}}
{{- $listen := $http.listen | default "0.0.0.0:8080" -}}
{{- splitList ":" $listen | last -}}
{{- end -}}

{{/* What the daemon's pods and the test's pod have in common. */}}
{{- define "appjwt-worker.pod" -}}
serviceAccountName: {{ include "appjwt-worker.serviceAccountName" . }}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: 45
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
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
  {{- range $name, $of := dict "vault-ca" .Values.vaultCA "sentinel-ca" .Values.sentinelCA "approle" .Values.approle }}
  {{- if $of.secretName }}
  - name: {{ $name }}
    secret:
      secretName: {{ $of.secretName }}
      defaultMode: 0440
  {{- end }}
  {{- end }}
  {{- with .Values.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "appjwt-worker.container" -}}
name: appjwt-worker
image: {{ include "appjwt-worker.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
resources:
  {{- toYaml .Values.resources | nindent 2 }}
{{- with .Values.extraEnv }}
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
  {{- range $name, $of := dict "vault-ca" .Values.vaultCA "sentinel-ca" .Values.sentinelCA "approle" .Values.approle }}
  {{- if $of.secretName }}
  - name: {{ $name }}
    mountPath: /etc/appjwt-worker/{{ $name }}
    readOnly: true
  {{- end }}
  {{- end }}
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}
