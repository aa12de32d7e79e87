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
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* A quantity such as 128Mi as a number of bytes. */}}
{{- define "sekisho.bytes" -}}
{{- $text := toString . -}}
{{- $number := regexFind "^[0-9.]+([eE][+-]?[0-9]+)?" $text -}}
{{- $unit := trimPrefix $number $text -}}
{{- $units := dict "" 1 "m" 0.001 "k" 1e3 "K" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- if or (not $number) (not (hasKey $units $unit)) -}}
{{- fail (printf "%s is no quantity of memory, such as 128Mi" $text) -}}
{{- end -}}
{{- mulf (float64 $number) (float64 (get $units $unit)) -}}
{{- end -}}

{{/* Nothing, or why the values do not fit together. */}}
{{- define "sekisho.check" -}}
{{- $limit := dig "limits" "memory" "" (.Values.resources | default dict) -}}
{{- if $limit -}}
{{- $need := addf (float64 (include "sekisho.bytes" .Values.memoryBudget)) (float64 (include "sekisho.bytes" "100Mi")) -}}
{{- if gt $need (float64 (include "sekisho.bytes" $limit)) -}}
{{- fail (printf "memoryBudget %s and 100Mi for the agent itself do not fit into resources.limits.memory %v: kernel memory counts against it, and the agent would be killed. Raise the limit or lower the budget" .Values.memoryBudget $limit) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.export.stdout .Values.export.file.enabled -}}
{{- fail "export.stdout and export.file.enabled: records go to one of them" -}}
{{- end -}}
{{- end -}}

{{- define "sekisho.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}
