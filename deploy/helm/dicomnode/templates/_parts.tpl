{{- define "dicomnode.name" -}}
{{ printf "%s" .Release.Name | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "dicomnode.labels" -}}
app.kubernetes.io/name: dicomnode
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "dicomnode.selector" -}}
app.kubernetes.io/name: dicomnode
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "dicomnode.image" -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- end }}

{{- define "dicomnode.cudaImage" -}}
{{ .Values.image.repository }}@{{ .Values.image.cudaDigest | default .Values.image.digest }}
{{- end }}

{{- define "dicomnode.claim" -}}
{{ .Values.storage.existingClaim | default (printf "%s-data" (include "dicomnode.name" .)) }}
{{- end }}

{{- /* a new node.toml means new pods: it is read once, when a process starts */}}
{{- define "dicomnode.podAnnotations" -}}
checksum/config: {{ include (print .Template.BasePath "/configmap.yaml") . | sha256sum }}
{{- end }}

{{- define "dicomnode.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "dicomnode.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "dicomnode.mounts" -}}
- {name: config, mountPath: /etc/dicomnode, readOnly: true}
- {name: data, mountPath: /var/lib/dicomnode}
- {name: tmp, mountPath: /tmp}
- {name: database, mountPath: /run/secrets/database, readOnly: true}
- {name: web, mountPath: /run/secrets/web, readOnly: true}
{{- range .Values.node.secrets }}
- {name: secret-{{ . }}, mountPath: /run/secrets/{{ . }}, readOnly: true}
{{- end }}
{{- end }}

{{- define "dicomnode.volumes" -}}
- name: config
  configMap: {name: {{ include "dicomnode.name" . }}}
- name: data
  persistentVolumeClaim: {claimName: {{ include "dicomnode.claim" . }}}
- name: tmp
  emptyDir: {sizeLimit: 8Gi}
- name: database
  secret:
    secretName: {{ .Values.database.secret }}
    defaultMode: 0440
    items: [{key: {{ .Values.database.key }}, path: url}]
- name: web
  secret:
    secretName: {{ .Values.web.tokenSecret }}
    defaultMode: 0440
    items: [{key: token, path: token}]
{{- range .Values.node.secrets }}
- name: secret-{{ . }}
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- end }}
