{{/* On which nodes agent and runtime stand: the same. */}}
{{- define "tarbox.nodePlacement" -}}
{{- with .Values.node.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.node.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- include "tarbox.affinity" (dict "root" . "given" .Values.node.affinity) }}
{{- end -}}
