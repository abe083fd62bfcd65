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

-- Not for tenants' logins (version 5).
ALTER TABLE tarbox.publication ENABLE ROW LEVEL SECURITY;
ALTER TABLE tarbox.node ENABLE ROW LEVEL SECURITY;

-- Neither is for mounters.
ALTER TABLE tarbox.publication ENABLE ROW LEVEL SECURITY;
ALTER TABLE tarbox.node ENABLE ROW LEVEL SECURITY;

-- What versions take that died up to a layer; and, of a branch that is no head any more, its present rows (NULL: not counted yet).
ALTER TABLE tarbox.branch ADD COLUMN history_bytes bigint NOT NULL DEFAULT 0;
ALTER TABLE tarbox.branch ADD COLUMN history_upto bigint NOT NULL DEFAULT 0;
ALTER TABLE tarbox.branch ADD COLUMN left_bytes bigint;

-- How many batches of a chain's flattening the head has seen: a commit that finds another number than it began with does nothing.
ALTER TABLE tarbox.tenant ADD COLUMN flattened bigint NOT NULL DEFAULT 0;
-- Where the branch began, if it has been flattened since: what it has come from.
ALTER TABLE tarbox.branch ADD COLUMN origin bigint;
ALTER TABLE tarbox.branch ADD COLUMN origin_layer bigint;
-- Reaped: kept to know that the ancestors' rows of the content are not to be taken over.
ALTER TABLE tarbox.dead_data ADD COLUMN reaped boolean NOT NULL DEFAULT false;
CREATE INDEX dead_data_left ON tarbox.dead_data (family) WHERE NOT reaped;
