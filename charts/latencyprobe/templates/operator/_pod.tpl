{{/* The common parts of the operator's pod and of the Job after an uninstall. */}}

{{/* All that Pod Security's `restricted` asks of a pod. */}}
{{- define "latencyprobe.operator.podSecurity" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532 # may read the certificate's key
  seccompProfile:
    type: RuntimeDefault
{{- end -}}

{{/* The same of a container. AppArmor is left to the runtime's default, as `restricted` asks for. */}}
{{- define "latencyprobe.operator.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end -}}

{{- define "latencyprobe.operator.placement" -}}
{{- with .Values.operator.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.operator.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.operator.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
