{{- define "sekisho.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 53 | trimSuffix "-" -}}
{{- end -}}

{{- define "sekisho.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 53 | trimSuffix "-" -}}
{{- else if contains (include "sekisho.name" .) .Release.Name -}}
{{- .Release.Name | trunc 53 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "sekisho.name" .) | trunc 53 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Of the whole cluster, so with the product's name in it whatever the release is called. */}}
{{- define "sekisho.clusterName" -}}
{{- $name := include "sekisho.fullname" . -}}
{{- if contains "sekisho" $name -}}{{ $name }}{{- else -}}sekisho-{{ $name }}{{- end -}}
{{- end -}}

{{- define "sekisho.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "sekisho.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "sekisho.selector" -}}
app.kubernetes.io/name: {{ include "sekisho.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "sekisho.labels" -}}
{{ include "sekisho.selector" . }}
{{- /* By it `kubectl sekisho` finds the agents. */}}
app.kubernetes.io/part-of: sekisho
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end -}}

{{- define "sekisho.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}
