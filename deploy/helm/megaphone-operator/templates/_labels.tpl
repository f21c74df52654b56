{{- define "labels" -}}
app.kubernetes.io/name: megaphone-operator
app.kubernetes.io/part-of: megaphone
{{- end }}

{{- define "selector" -}}
app.kubernetes.io/name: megaphone-operator
{{- end }}
