{{/* What a container that needs nothing may do: nothing. */}}
{{- define "tarbox.locked" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* A sidecar of the controller; one of the replicas leads. Takes {root, name, args}. */}}
{{- define "tarbox.controllerSidecar" -}}
{{- $sidecar := get .root.Values.sidecars .name -}}
- name: {{ kebabcase .name }}
  {{- include "tarbox.sidecarImage" (dict "root" .root "sidecar" $sidecar) | nindent 2 }}
  args:
    - --csi-address=/csi/csi.sock
    - --leader-election
    - --leader-election-namespace=$(NAMESPACE)
    {{- range concat .args $sidecar.args }}
    - {{ . | quote }}
    {{- end }}
  env:
    - name: NAMESPACE
      valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
  resources:
    {{- toYaml $sidecar.resources | nindent 4 }}
  securityContext:
    {{- include "tarbox.locked" .root | nindent 4 }}
  volumeMounts:
    - {name: socket, mountPath: /csi}
{{- end -}}

{{/* A sidecar on a node, of root and out of SELinux's separation: the sockets are of a privileged container. */}}
{{- define "tarbox.nodeSidecar" -}}
runAsUser: 0
{{- with .Values.node.sidecarSELinuxType }}
seLinuxOptions: {type: {{ . }}}
{{- end }}
{{ include "tarbox.locked" . }}
{{- end -}}

{{/* CSI Probe as the readiness of a pod: whether the socket answers. Takes {root, security}. */}}
{{- define "tarbox.livenessSidecar" -}}
{{- $security := .security -}}
{{- with .root -}}
{{- $sidecar := .Values.sidecars.livenessProbe -}}
{{- if $sidecar.enabled -}}
- name: liveness-probe
  {{- include "tarbox.sidecarImage" (dict "root" . "sidecar" $sidecar) | nindent 2 }}
  args:
    - --csi-address=/csi/csi.sock
    - --http-endpoint=:{{ .Values.ports.health }}
    - --probe-timeout=5s
    {{- range $sidecar.args }}
    - {{ . | quote }}
    {{- end }}
  ports:
    - {name: health, containerPort: {{ .Values.ports.health }}}
  # Readiness, not liveness: Probe waits for the database, which no restart would bring.
  readinessProbe:
    httpGet: {path: /healthz, port: health}
    periodSeconds: 10
    timeoutSeconds: 6
    failureThreshold: 3
  resources:
    {{- toYaml $sidecar.resources | nindent 4 }}
  securityContext:
    {{- $security | nindent 4 }}
  volumeMounts:
    - {name: socket, mountPath: /csi}
{{- end -}}
{{- end -}}
{{- end -}}
