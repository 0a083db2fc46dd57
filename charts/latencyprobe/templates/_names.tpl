{{/* Names, namespaces, labels and images. `component` is "operator" or "agent". */}}

{{/* The begin of the names of all objects. */}}
{{- define "latencyprobe.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains "latencyprobe" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-latencyprobe" .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "latencyprobe.operator.name" -}}
{{ include "latencyprobe.fullname" . }}-operator
{{- end -}}

{{- define "latencyprobe.agent.name" -}}
{{ include "latencyprobe.fullname" . }}-agent
{{- end -}}

{{/* The agents' namespace: their own, so that the operator's can be `restricted`. */}}
{{- define "latencyprobe.agent.namespace" -}}
{{ .Values.agent.namespace.name | default .Release.Namespace }}
{{- end -}}

{{- define "latencyprobe.agent.priorityClass" -}}
{{- if .Values.agent.priorityClass.name -}}
{{ .Values.agent.priorityClass.name }}
{{- else if .Values.agent.priorityClass.create -}}
{{ include "latencyprobe.agent.name" . }}
{{- end -}}
{{- end -}}

{{/* The labels by which a Deployment or DaemonSet selects: never changed by an upgrade. */}}
{{- define "latencyprobe.selector" -}}
app.kubernetes.io/name: latencyprobe-{{ .component }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end -}}

{{- define "latencyprobe.labels" -}}
{{ include "latencyprobe.selector" . }}
app.kubernetes.io/part-of: latencyprobe
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The labels of objects that belong to both. */}}
{{- define "latencyprobe.commonLabels" -}}
app.kubernetes.io/name: latencyprobe
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: latencyprobe
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* registry/repository:tag@digest, each as far as it is given; the tag defaults to the version. */}}
{{- define "latencyprobe.image" -}}
{{- $image := (index .root.Values .component).image -}}
{{- $registry := .root.Values.global.imageRegistry -}}
{{- if $registry }}{{ trimSuffix "/" $registry }}/{{ end -}}
{{- $image.repository -}}
{{- if or $image.tag (not $image.digest) }}:{{ $image.tag | default .root.Chart.AppVersion }}{{ end -}}
{{- with $image.digest }}@{{ . }}{{ end -}}
{{- end -}}

{{/* The Secret of one component's certificate. */}}
{{- define "latencyprobe.tlsSecret" -}}
{{- if eq .root.Values.tls.source "existingSecrets" -}}
{{ index .root.Values.tls.existingSecrets .component }}
{{- else -}}
{{ include (printf "latencyprobe.%s.name" .component) .root }}-tls
{{- end -}}
{{- end -}}

{{/* "yes" for a value that is there, 0 included. */}}
{{- define "latencyprobe.given" -}}
{{- if not (or (kindIs "invalid" .) (eq (toString .) "")) -}}yes{{- end -}}
{{- end -}}
