#!/usr/bin/env bash
# What the programs are made of, as CycloneDX 1.5 in JSON: every crate that Cargo.lock pins and a program of the image is built with.
# The same source gives the same bytes. Usage: deploy/image/sbom.sh TARGET >sbom.cdx.json
set -euo pipefail
cd "$(dirname "$0")/../.."
cargo metadata --locked --format-version 1 --filter-platform "$1" |
    jq --sort-keys --rawfile lock Cargo.lock --arg target "$1" '
    # name and version -> the checksum in Cargo.lock
    ([$lock | scan("name = \"([^\"]+)\"\nversion = \"([^\"]+)\"\n(?:source = \"[^\"]+\"\n)?checksum = \"([0-9a-f]+)\"")
        | {key: "\(.[0]) \(.[1])", value: .[2]}] | from_entries) as $sums
    | (.resolve.nodes | map({key: .id, value: [.deps[] | select(any(.dep_kinds[]; .kind != "dev")) | .pkg]}) | from_entries) as $needs
    | (.packages | map({key: .id, value: .}) | from_entries) as $packages
    | def ref($id): $packages[$id] | "pkg:cargo/\(.name)@\(.version)";
    # Everything that is reached from the programs, without what only tests need.
    def reached: . as $known | ([.[] | $needs[.][]] + . | unique) | if length == ($known | length) then . else reached end;
    ["tarbox-mounter", "tarbox-agent", "tarbox-keeper", "tarbox-controller"] as $programs
    | [.packages[] | select(.source == null and (.name | IN($programs[]))) | .id] | reached as $all
    | {
        bomFormat: "CycloneDX", specVersion: "1.5", version: 1,
        metadata: {
            component: {
                type: "application", name: "tarbox", "bom-ref": "tarbox",
                version: ([$packages[] | select(.name == "tarbox-agent") | .version] | first)
            },
            properties: [{name: "cargo:target", value: $target}]
        },
        components: [$all[] | . as $id | $packages[$id] | {
            type: "library", "bom-ref": ref($id), name, version, purl: ref($id),
            licenses: (if .license then [{expression: (.license | gsub("/"; " OR "))}] else [] end),
            hashes: (if $sums["\(.name) \(.version)"] then [{alg: "SHA-256", content: $sums["\(.name) \(.version)"]}] else [] end)
        }] | sort_by(.purl),
        dependencies: [$all[] | . as $id | {ref: ref($id), dependsOn: ([$needs[$id][] | ref(.)] | unique)}] | sort_by(.ref)
    } | .components |= map(with_entries(select(.value != [])))'
