{{- define "upt.name" -}}
{{- if contains "upt" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-upt" .Release.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "upt.selector" -}}
app.kubernetes.io/name: upt
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "upt.labels" -}}
{{ include "upt.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "upt.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "upt.zooClaim" -}}
{{ .Values.zoo.existingClaim | default (printf "%s-zoo" (include "upt.name" .)) }}
{{- end }}

{{- define "upt.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "upt.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "upt.pull" -}}
- name: zoo
  image: {{ include "upt.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  command: [sh, -ceu, 'for ref in "$@"; do upt-zoo pull "$ref"; done', pull]
  args: {{ toJson .Values.adapters }}
  {{- if .Values.zoo.registrySecret }}
  env:
    - {name: DOCKER_CONFIG, value: /etc/upt-registry}
  {{- end }}
  securityContext: {{- include "upt.security" . | nindent 4 }}
  resources:
    requests: {cpu: 100m, memory: 256Mi}
    limits: {memory: 1Gi}
  volumeMounts:
    - {name: zoo, mountPath: /var/lib/upt/zoo}
    - {name: state, mountPath: /var/lib/upt/state}
    - {name: configuration, mountPath: /etc/upt, readOnly: true}
    - {name: temporary, mountPath: /tmp}
    {{- if .Values.zoo.registrySecret }}
    - {name: registry, mountPath: /etc/upt-registry, readOnly: true}
    {{- end }}
{{- end }}

{{- define "upt.volumes" -}}
- name: configuration
  configMap:
    name: {{ include "upt.name" . }}
- name: zoo
  {{- if .Values.zoo.persistent }}
  persistentVolumeClaim:
    claimName: {{ include "upt.zooClaim" . }}
  {{- else }}
  emptyDir: {}
  {{- end }}
- name: state
  emptyDir: {}
- name: temporary
  emptyDir: {}
{{- if .Values.zoo.registrySecret }}
- name: registry
  secret:
    secretName: {{ .Values.zoo.registrySecret }}
    items: [{key: .dockerconfigjson, path: config.json}]
{{- end }}
{{- end }}
