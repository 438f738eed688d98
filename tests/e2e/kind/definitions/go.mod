// Whose definitions the tests install: by the checksum in go.sum.
module palisade.dev/definitions

go 1.26.0

require sigs.k8s.io/network-policy-api v0.2.0
