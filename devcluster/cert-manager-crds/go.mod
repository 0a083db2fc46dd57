// Pins the cert-manager whose CRDs the chart's objects are held against: a current release, where
// cert-manager-binary has the newest one that can be compiled.
module latencyprobe.io/devcluster/cert-manager-crds

go 1.26.0

require github.com/cert-manager/cert-manager v1.21.2
