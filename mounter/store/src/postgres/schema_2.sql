-- Schema version 2: what is kept beside the tenants, so that whoever makes volumes and snapshots may be killed and asked again.

CREATE TABLE tarbox.volume (
    id          uuid PRIMARY KEY,
    request     text NOT NULL,
    description text NOT NULL
);
CREATE UNIQUE INDEX volume_request ON tarbox.volume (request);

-- purpose 0: a snapshot; 1: the base of a clone; 2: for nothing any more. layer NULL: to be sealed.
CREATE TABLE tarbox.snapshot (
    id          uuid PRIMARY KEY,
    tenant      uuid NOT NULL,
    request     text NOT NULL,
    purpose     smallint NOT NULL,
    branch      bigint,
    layer       bigint,
    name        text,
    sealed_at   bigint,
    used_bytes  bigint,
    used_inodes bigint
);
CREATE UNIQUE INDEX snapshot_request ON tarbox.snapshot (request) WHERE purpose = 0;
CREATE INDEX snapshot_tenant ON tarbox.snapshot (tenant, id);

-- Who does the background work. Each of its writes locks this row, for share.
CREATE TABLE tarbox.leader (
    one    boolean PRIMARY KEY DEFAULT true CHECK (one),
    holder uuid NOT NULL,
    epoch  bigint NOT NULL,
    until  timestamptz NOT NULL
);
