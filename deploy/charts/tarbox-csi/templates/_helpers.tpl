{{/* Names. */}}
{{- define "tarbox.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "tarbox.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "tarbox.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "tarbox.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* The driver's name is compiled in. */}}
{{- define "tarbox.driver" -}}tarbox.csi.io{{- end -}}

{{/* What selects pods: must never change, a Deployment's selector cannot. Takes {root, component}. */}}
{{- define "tarbox.selector" -}}
app.kubernetes.io/name: {{ include "tarbox.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Takes {root, component}. */}}
{{- define "tarbox.labels" -}}
{{ include "tarbox.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: tarbox
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* name, labels and annotations of an object in the release's namespace. Takes {root, component, name[, annotations]}. */}}
{{- define "tarbox.metadata" -}}
name: {{ .name }}
namespace: {{ .root.Release.Namespace }}
{{ include "tarbox.clusterMetadata" (omit . "name") }}
{{- end -}}

{{/* The same without the namespace. */}}
{{- define "tarbox.clusterMetadata" -}}
{{- with .name }}name: {{ . }}
{{ end -}}
labels:
  {{- include "tarbox.labels" . | nindent 2 }}
{{- with merge (default dict .annotations | deepCopy) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* An image's name. Takes {root, image}. */}}
{{- define "tarbox.imageName" -}}
{{- $registry := default .image.registry .root.Values.imageRegistry -}}
{{- with $registry }}{{ . }}/{{ end }}{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end -}}

{{- define "tarbox.image" -}}
{{- include "tarbox.imageName" (dict "root" . "image" .Values.image) -}}
{{- end -}}

{{- define "tarbox.runtimeImage" -}}
{{- $own := .Values.runtime.image -}}
{{- $image := dict "registry" (default .Values.image.registry $own.registry) "repository" (default .Values.image.repository $own.repository) "tag" (default .Values.image.tag $own.tag) -}}
{{- include "tarbox.imageName" (dict "root" . "image" $image) -}}
{{- end -}}

{{/* A sidecar's image. Takes {root, sidecar}. */}}
{{- define "tarbox.sidecarImage" -}}
image: {{ include "tarbox.imageName" (dict "root" .root "image" .sidecar.image) | quote }}
imagePullPolicy: {{ .root.Values.sidecars.pullPolicy }}
{{- end -}}

{{- define "tarbox.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Which database: url, secret, embedded or sqlite. */}}
{{- define "tarbox.database" -}}
{{- $db := .Values.database -}}
{{- $chosen := list -}}
{{- if $db.url }}{{ $chosen = append $chosen "url" }}{{ end -}}
{{- if $db.urlSecret.name }}{{ $chosen = append $chosen "urlSecret" }}{{ end -}}
{{- if $db.embedded }}{{ $chosen = append $chosen "embedded" }}{{ end -}}
{{- if gt (len $chosen) 1 -}}
{{- fail (printf "database: %s are given together; allowed is one of database.url, database.urlSecret.name, database.embedded, or none of them (SQLite on one node)" (join " and " $chosen)) -}}
{{- end -}}
{{- first (append $chosen "sqlite") -}}
{{- end -}}

{{- define "tarbox.isSqlite" -}}
{{- if eq (include "tarbox.database" .) "sqlite" }}true{{ end -}}
{{- end -}}

{{/* The Secret with the database's URL, and its key. */}}
{{- define "tarbox.databaseSecret" -}}
{{- if eq (include "tarbox.database" .) "urlSecret" -}}
name: {{ .Values.database.urlSecret.name }}
key: {{ .Values.database.urlSecret.key }}
{{- else -}}
name: {{ include "tarbox.fullname" . }}-database
key: databaseURL
{{- end -}}
{{- end -}}

{{/* The environment variable that names the database. */}}
{{- define "tarbox.databaseEnv" -}}
- name: TARBOX_DATABASE_URL
{{- if include "tarbox.isSqlite" . }}
  value: {{ printf "sqlite://%s" .Values.database.sqlite.path | quote }}
{{- else }}
  valueFrom:
    secretKeyRef:
      {{- include "tarbox.databaseSecret" . | nindent 6 }}
{{- end }}
{{- end -}}

{{/* What every container needs to reach the database: volumes of the pod. */}}
{{- define "tarbox.databaseVolumes" -}}
{{- if include "tarbox.isSqlite" . }}
- name: database
  hostPath: {path: {{ .Values.database.sqlite.path }}, type: DirectoryOrCreate}
{{- end }}
{{- with .Values.database.caConfigMap }}
- name: database-ca
  configMap: {name: {{ . }}}
{{- end }}
{{- end -}}

{{- define "tarbox.databaseMounts" -}}
{{- if include "tarbox.isSqlite" . }}
- {name: database, mountPath: {{ .Values.database.sqlite.path }}}
{{- end }}
{{- if .Values.database.caConfigMap }}
- {name: database-ca, mountPath: /etc/tarbox/ca, readOnly: true}
{{- end }}
{{- end -}}

{{/* Only the node that has the SQLite database. */}}
{{- define "tarbox.databaseNode" -}}
{{- if and (include "tarbox.isSqlite" .) .Values.database.sqlite.nodeName }}
nodeAffinity:
  requiredDuringSchedulingIgnoredDuringExecution:
    nodeSelectorTerms:
      - matchFields:
          - {key: metadata.name, operator: In, values: [{{ .Values.database.sqlite.nodeName | quote }}]}
{{- end }}
{{- end -}}

{{/* An affinity: the one that was given, else `usual`; with SQLite only the database's node. Takes {root, given, usual}. */}}
{{- define "tarbox.affinity" -}}
{{- $node := include "tarbox.databaseNode" .root | fromYaml -}}
{{- with merge $node (default (default dict .usual) .given) }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* What changes when pods have to read their database's URL anew. */}}
{{- define "tarbox.databaseChecksum" -}}
{{- $db := .Values.database -}}
{{- dict "kind" (include "tarbox.database" .) "url" $db.url "secret" $db.urlSecret "password" $db.postgres.password "ca" $db.caConfigMap "sqlite" $db.sqlite | toJson | sha256sum -}}
{{- end -}}

{{- define "tarbox.serviceAccount" -}}
{{ include "tarbox.fullname" .root }}-{{ .component }}
{{- end -}}

{{/* Whether there are snapshots. */}}
{{- define "tarbox.snapshots" -}}
{{- if eq (toString .Values.snapshots.enabled) "auto" -}}
{{- if .Capabilities.APIVersions.Has "snapshot.storage.k8s.io/v1" }}true{{ end -}}
{{- else if .Values.snapshots.enabled }}true{{ end -}}
{{- end -}}

{{- define "tarbox.topology" -}}
{{- $pairs := list -}}
{{- range $key, $value := .Values.node.topology }}{{ $pairs = append $pairs (printf "%s=%s" $key $value) }}{{ end -}}
{{- join "," $pairs -}}
{{- end -}}

{{- define "tarbox.nativeSources" -}}
{{- $pairs := list -}}
{{- range .Values.node.nativeSources }}{{ $pairs = append $pairs (printf "%s=%s" .path .mode) }}{{ end -}}
{{- join "," $pairs -}}
{{- end -}}

{{/* What is wrong with the values together. */}}
{{- define "tarbox.check" -}}
{{- $kind := include "tarbox.database" . -}}
{{- if and (not .Values.node.hostPath.enabled) (ne .Values.node.launcher "child") -}}
{{- fail (printf "node.hostPath.enabled = false needs node.launcher = child, not %s: the state of the mounters would go with the agent's pod, and they would not" .Values.node.launcher) -}}
{{- end -}}
{{- if and (eq $kind "sqlite") (not .Values.database.sqlite.nodeName) -}}
{{- $nodes := (lookup "v1" "Node" "" "").items | default list -}}
{{- if gt (len $nodes) 1 -}}
{{- fail (printf "database: SQLite lies on one node, and this cluster has %d: name the node (database.sqlite.nodeName), or use a PostgreSQL (database.urlSecret.name, database.url, or database.embedded = true to try out)" (len $nodes)) -}}
{{- end -}}
{{- end -}}
{{- $defaults := list -}}
{{- range $name, $class := .Values.storageClasses.classes }}{{ if and $class.enabled $class.isDefault }}{{ $defaults = append $defaults $name }}{{ end }}{{ end -}}
{{- if gt (len $defaults) 1 -}}
{{- fail (printf "storageClasses.classes: %s are both isDefault; allowed is one" (join " and " $defaults)) -}}
{{- end -}}
{{- end -}}
