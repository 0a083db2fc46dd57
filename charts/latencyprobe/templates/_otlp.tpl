{{/* The push of metrics by OTLP, of both components. `component` is "operator" or "agent". */}}

{{- define "latencyprobe.otlp.args" -}}
{{- with .root.Values.otlp }}
{{- if .endpoint }}
- --otlp-endpoint={{ .endpoint }}
- --otlp-interval={{ .interval }}
{{- if .insecure }}
- --otlp-insecure
{{- end }}
{{- if .caSecret }}
- --otlp-ca-file=/etc/latencyprobe/otlp-ca/ca.crt
{{- end }}
{{- if .clientSecret }}
- --otlp-cert-file=/etc/latencyprobe/otlp-client/tls.crt
- --otlp-key-file=/etc/latencyprobe/otlp-client/tls.key
{{- end }}
{{- if .headersSecret }}
- --otlp-headers-file=/etc/latencyprobe/otlp-headers/headers
{{- end }}
- --otlp-resource-attribute=k8s.namespace.name=$(POD_NAMESPACE)
- --otlp-resource-attribute=k8s.pod.name=$(POD_NAME)
- --otlp-resource-attribute=k8s.container.name={{ $.component }}
{{- if eq $.component "operator" }}
- --otlp-resource-attribute=k8s.node.name=$(NODE_NAME)
{{- end }}
{{- range $key, $value := .resourceAttributes }}
- {{ printf "--otlp-resource-attribute=%s=%s" $key $value | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "latencyprobe.otlp.env" -}}
{{- if .root.Values.otlp.endpoint }}
{{- if eq .component "operator" }}
- name: NODE_NAME
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
{{- end }}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
{{- end }}
{{- end -}}

{{/* Each Secret of the push: its name, the part of its volume's name, and its keys. */}}
{{- define "latencyprobe.otlp.secrets" -}}
{{- with .root.Values.otlp }}
{{- if .endpoint }}
{{- with .caSecret }}
- {secret: {{ . }}, name: ca, keys: [ca.crt]} # not the authority's key, should it lie beside it
{{- end }}
{{- with .clientSecret }}
- {secret: {{ . }}, name: client, keys: [tls.crt, tls.key]}
{{- end }}
{{- with .headersSecret }}
- {secret: {{ . }}, name: headers, keys: [headers]}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "latencyprobe.otlp.volumeMounts" -}}
{{- range include "latencyprobe.otlp.secrets" . | fromYamlArray }}
- name: otlp-{{ .name }}
  mountPath: /etc/latencyprobe/otlp-{{ .name }}
  readOnly: true
{{- end }}
{{- end -}}

{{/* The operator is not root: its group may read. */}}
{{- define "latencyprobe.otlp.volumes" -}}
{{- $mode := ternary "0440" "0400" (eq .component "operator") }}
{{- range include "latencyprobe.otlp.secrets" . | fromYamlArray }}
- name: otlp-{{ .name }}
  secret:
    secretName: {{ .secret }}
    items:
      {{- range .keys }}
      - {key: {{ . }}, path: {{ . }}}
      {{- end }}
    defaultMode: {{ $mode }}
{{- end }}
{{- end -}}

{{/* Egress of a NetworkPolicy: to the collector, and to name servers unless its host is an address. */}}
{{- define "latencyprobe.otlp.egress" -}}
{{- if .Values.otlp.endpoint }}
{{- with .Values.networkPolicy.otlpTo }}
- to:
    {{- toYaml . | nindent 4 }}
{{- if not (regexMatch "^(\\[|[0-9.]+:)" $.Values.otlp.endpoint) }}
- ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}
