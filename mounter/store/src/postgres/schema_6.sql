-- Schema version 6: where volumes may be mounted, as whoever attaches them has said, and which nodes there are.

-- mode: CSI's number of the access mode.
CREATE TABLE tarbox.publication (
    tenant    uuid NOT NULL,
    node      text NOT NULL,
    mode      smallint NOT NULL,
    read_only boolean NOT NULL,
    PRIMARY KEY (tenant, node)
);

CREATE TABLE tarbox.node (
    node    text PRIMARY KEY,
    seen_at timestamptz NOT NULL
);
