{{- define "postbridge.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels of all pods of a release, including those of drain Jobs and of reconcile. */}}
{{- define "postbridge.releaseLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Labels that select the replicas only. They must not change: the selector of a StatefulSet is immutable. */}}
{{- define "postbridge.selectorLabels" -}}
{{ include "postbridge.releaseLabels" . }}
app.kubernetes.io/component: edge
{{- end -}}

{{- define "postbridge.labels" -}}
{{ include "postbridge.releaseLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{- define "postbridge.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* The keys of the Secret that are read, as a JSON list. */}}
{{- define "postbridge.secretKeys" -}}
{{- if .Values.secret.existingSecret -}}
{{- .Values.secret.keys | sortAlpha | toJson -}}
{{- else -}}
{{- keys .Values.secret.data | sortAlpha | toJson -}}
{{- end -}}
{{- end -}}

{{- define "postbridge.secretName" -}}
{{- .Values.secret.existingSecret | default (printf "%s-values" (include "postbridge.fullname" .)) -}}
{{- end -}}

{{/* The paths of the enabled brokers, as a JSON list. */}}
{{- define "postbridge.paths" -}}
{{- $keys := include "postbridge.secretKeys" . | fromJsonArray -}}
{{- $paths := list -}}
{{- if has "KITE_SECRETS" $keys }}{{ $paths = append $paths "/kite" }}{{ end -}}
{{- range list "dhan" "upstox" "fyers" }}
{{- if has (printf "%s_TOKENS" (upper .)) $keys }}{{ $paths = append $paths (printf "/%s" .) }}{{ end -}}
{{- end -}}
{{- $paths | toJson -}}
{{- end -}}

{{/* "true" if the release publishes to the bus, else empty. Call with a dict of root and bus. */}}
{{- define "postbridge.publishes" -}}
{{- if has .bus (splitList "," .root.Values.publish) }}true{{ end -}}
{{- end -}}

{{/* The ports of the bus, as a JSON list of numbers. */}}
{{- define "postbridge.busPorts" -}}
{{- $ports := .Values.networkPolicy.busPorts -}}
{{- if not $ports -}}
{{- $servers := list -}}
{{- if include "postbridge.publishes" (dict "root" . "bus" "nats") }}{{ $servers = splitList "," .Values.nats.url }}{{ end -}}
{{- if include "postbridge.publishes" (dict "root" . "bus" "kafka") }}{{ $servers = concat $servers .Values.kafka.brokers }}{{ end -}}
{{- range $servers -}}
{{- $port := get (dict "ws" "80" "wss" "443") (regexFind "^wss?" .) | default "4222" -}}
{{- $ports = append $ports (regexFind ":[0-9]+/?$" . | trimPrefix ":" | trimSuffix "/" | default $port | atoi) -}}
{{- end -}}
{{- end -}}
{{- $ports | uniq | toJson -}}
{{- end -}}

{{/*
The environment of the container. Call with a dict of root and bus; bus=true gives only the settings of the buses, for a
drain, which accepts no postbacks, and with reconcile=true for reconcile, which has no spool and may have a user of its own.
Settings of a bus that is not published to are omitted: the program rejects them.
*/}}
{{- define "postbridge.env" -}}
{{- $v := .root.Values -}}
{{- $user := dict "nats" $v.nats.user "kafka" $v.kafka.user -}}
{{- if and .reconcile $v.reconcile.user }}{{ $user = dict "nats" $v.reconcile.user "kafka" $v.reconcile.user }}{{ end -}}
{{- $set := dict "PREFIX" $v.prefix "LOG_LEVEL" $v.log.level "LOG_FORMAT" $v.log.format -}}
{{- $_ := dict -}}
{{- if not .reconcile -}}
{{- $_ = merge $set (dict "DATA_DIR" "/data" "SPOOL_MAX_BYTES" $v.spool.maxBytes "SPOOL_MIN_FREE_BYTES" $v.spool.minFreeBytes "SPOOL_KEEP" $v.spool.keep) -}}
{{- end -}}
{{- if not .bus -}}
{{- $_ = merge $set (dict "LISTEN" ":8080" "ADMIN_LISTEN" ":9090" "ADMIN_PAGE" $v.adminPage "MAX_BODY" $v.maxBody "MAX_CONNECTIONS" ($v.maxConnections | int) "IDLE_TIMEOUT" $v.idleTimeout) -}}
{{- if $v.tls.existingSecret -}}
{{- $_ = merge $set (dict "TLS_CERT_FILE" (printf "/etc/postbridge/tls/%s" $v.tls.cert) "TLS_KEY_FILE" (printf "/etc/postbridge/tls/%s" $v.tls.key)) -}}
{{- end -}}
{{- $_ = merge $set (dict "KITE_CHECKSUM" $v.kite.checksum "DHAN_CLIENT_IDS" (join "," $v.dhan.clientIds) "UPSTOX_USER_IDS" (join "," $v.upstox.userIds) "FYERS_CLIENT_IDS" (join "," $v.fyers.clientIds)) -}}
{{- end -}}
{{- if eq $v.publish "embedded" -}}
{{- $_ = merge $set (dict "PUBLISH" "nats" "NATS_LISTEN" $v.nats.listen) -}}
{{- else -}}
{{- $_ = merge $set (dict "PUBLISH" $v.publish) -}}
{{- end -}}
{{- if ne $v.publish "kafka" -}}
{{- $_ = merge $set (dict "NATS_CREATE_STREAMS" $v.nats.createStreams "NATS_REPLICAS" $v.nats.replicas "NATS_MAX_AGE" $v.nats.maxAge "NATS_MAX_BYTES" $v.nats.maxBytes) -}}
{{- end -}}
{{- if include "postbridge.publishes" (dict "root" .root "bus" "nats") -}}
{{- $_ = merge $set (dict "NATS_URL" $v.nats.url "NATS_USER" $user.nats) (include "postbridge.tlsEnv" (dict "bus" "nats" "tls" $v.nats.tls) | fromJson) -}}
{{- end -}}
{{- if include "postbridge.publishes" (dict "root" .root "bus" "kafka") -}}
{{- $_ = merge $set (dict "KAFKA_BROKERS" (join "," $v.kafka.brokers) "KAFKA_SASL_MECHANISM" $v.kafka.saslMechanism "KAFKA_USER" $user.kafka) -}}
{{- $_ = merge $set (dict "KAFKA_CREATE_TOPICS" $v.kafka.createTopics "KAFKA_PARTITIONS" $v.kafka.partitions "KAFKA_REPLICATION" $v.kafka.replication) -}}
{{- $_ = merge $set (dict "KAFKA_TLS" $v.kafka.tls.enabled) (include "postbridge.tlsEnv" (dict "bus" "kafka" "tls" $v.kafka.tls) | fromJson) -}}
{{- end -}}
{{- range include "postbridge.keysFor" . | fromJsonArray -}}
{{- $_ = set $set (printf "%s_FILE" .) (printf "/etc/postbridge/secret/%s" .) -}}
{{- end -}}
{{- if .reconcile -}}
{{- range include "postbridge.reconcileKeys" .root | fromJsonArray -}}
{{- $_ = set $set (printf "%s_FILE" .) (printf "/etc/postbridge/reconcile/%s" .) -}}
{{- end -}}
{{- end -}}
{{- $env := list -}}
{{- range $name := keys $set | sortAlpha -}}
{{- with get $set $name | toString -}}
{{- $env = append $env (dict "name" (printf "POSTBRIDGE_%s" $name) "value" .) -}}
{{- end -}}
{{- end -}}
{{- toYaml $env -}}
{{- end -}}

{{- define "postbridge.tlsEnv" -}}
{{- $set := dict -}}
{{- if .tls.existingSecret -}}
{{- $dir := printf "/etc/postbridge/%s-tls" .bus -}}
{{- range $what, $key := dict "CA" .tls.ca "CERT" .tls.cert "KEY" .tls.key -}}
{{- if $key }}{{ $_ := set $set (printf "%s_TLS_%s_FILE" (upper $.bus) $what) (printf "%s/%s" $dir $key) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- $set | toJson -}}
{{- end -}}

{{/*
The keys of the Secret for a replica, a drain or reconcile, as a JSON list; keys of a bus only if it is published to, and not
for a reconcile with a login of its own.
*/}}
{{- define "postbridge.keysFor" -}}
{{- $own := list -}}
{{- if .reconcile }}{{ $own = include "postbridge.reconcileKeys" .root | fromJsonArray }}{{ end -}}
{{- $keys := list -}}
{{- range include "postbridge.secretKeys" .root | fromJsonArray -}}
{{- $bus := splitList "_" . | first | lower -}}
{{- if has $bus (list "nats" "kafka") -}}
{{- $login := false -}}
{{- range $own }}{{ if hasPrefix (printf "%s_" (upper $bus)) . }}{{ $login = true }}{{ end }}{{ end -}}
{{- if and (include "postbridge.publishes" (dict "root" $.root "bus" $bus)) (not $login) }}{{ $keys = append $keys . }}{{ end -}}
{{- else if or (not $.bus) (and $.reconcile (eq . "ADMIN_TOKEN")) -}}
{{- $keys = append $keys . -}}
{{- end -}}
{{- end -}}
{{- $keys | toJson -}}
{{- end -}}

{{/* The keys of the Secret of reconcile, as a JSON list; keys of a bus only if it is published to. */}}
{{- define "postbridge.reconcileKeys" -}}
{{- $keys := list -}}
{{- range .Values.reconcile.keys | sortAlpha -}}
{{- $bus := splitList "_" . | first | lower -}}
{{- if or (hasSuffix "_ACCESS_TOKENS" .) (include "postbridge.publishes" (dict "root" $ "bus" $bus)) }}{{ $keys = append $keys . }}{{ end -}}
{{- end -}}
{{- $keys | toJson -}}
{{- end -}}

{{/* The volumes of Secrets. They are mounted as directories: a subPath mount is not updated in a running pod. */}}
{{- define "postbridge.secretVolumes" -}}
{{- $v := .root.Values -}}
{{- with include "postbridge.keysFor" . | fromJsonArray }}
- name: secret
  secret:
    secretName: {{ include "postbridge.secretName" $.root | quote }}
    defaultMode: 0440
    items:
      {{- range . }}
      - {key: {{ . }}, path: {{ . }}}
      {{- end }}
{{- end }}
{{- if .reconcile }}
- name: reconcile
  secret:
    secretName: {{ $v.reconcile.existingSecret | quote }}
    defaultMode: 0440
    items:
      {{- range include "postbridge.reconcileKeys" .root | fromJsonArray }}
      - {key: {{ . }}, path: {{ . }}}
      {{- end }}
{{- end }}
{{- if and $v.tls.existingSecret (not .bus) }}
- name: tls
  secret: {secretName: {{ $v.tls.existingSecret | quote }}, defaultMode: 0440}
{{- end }}
{{- if and $v.nats.tls.existingSecret (include "postbridge.publishes" (dict "root" .root "bus" "nats")) }}
- name: nats-tls
  secret: {secretName: {{ $v.nats.tls.existingSecret | quote }}, defaultMode: 0440}
{{- end }}
{{- if and $v.kafka.tls.existingSecret (include "postbridge.publishes" (dict "root" .root "bus" "kafka")) }}
- name: kafka-tls
  secret: {secretName: {{ $v.kafka.tls.existingSecret | quote }}, defaultMode: 0440}
{{- end }}
{{- with $v.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "postbridge.volumeMounts" -}}
{{- $volumes := include "postbridge.secretVolumes" . | fromYamlArray -}}
{{ if not .reconcile }}- {name: postbridge-spool, mountPath: /data}{{ end }}
{{- range $volumes }}
{{- if has .name (list "secret" "reconcile" "tls" "nats-tls" "kafka-tls") }}
- {name: {{ .name }}, mountPath: /etc/postbridge/{{ .name }}, readOnly: true}
{{- end }}
{{- end }}
{{- with .root.Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Labels that select the pod of reconcile only. */}}
{{- define "postbridge.reconcileLabels" -}}
{{ include "postbridge.releaseLabels" . }}
app.kubernetes.io/component: reconcile
{{- end -}}

{{/* The part of the pod spec that replicas, drains and reconcile share. */}}
{{- define "postbridge.podSpec" -}}
serviceAccountName: {{ include "postbridge.fullname" . }}
automountServiceAccountToken: false
# Service links of a Service named postbridge would be POSTBRIDGE_ variables.
enableServiceLinks: false
securityContext: {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - {{ ternary (dict "name" .) . (kindIs "string" .) | toJson }}
  {{- end }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.extraContainers }}
# Init containers that are always restarted: they start before postbridge and end after it, and a drain Job completes.
initContainers:
  {{- range . }}
  - {{ merge (dict "restartPolicy" "Always") . | toYaml | nindent 4 | trim }}
  {{- end }}
{{- end }}
{{- end -}}
