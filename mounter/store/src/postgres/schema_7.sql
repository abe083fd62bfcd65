-- Schema version 7: audit events, packed. They belong to the tenant, whatever branch it writes, and go with it. In the order of time,
-- so that what is too old is a prefix; data is compressed by who writes it.

CREATE TABLE tarbox.audit (
    family bigint NOT NULL,
    tenant uuid NOT NULL,
    -- When the last event in it happened, in microseconds since 1970.
    until  bigint NOT NULL,
    -- The commit that brought it, and its place among those of one commit.
    seq    bigint NOT NULL,
    part   int NOT NULL,
    since  bigint NOT NULL,
    events bigint NOT NULL,
    data   bytea NOT NULL,
    PRIMARY KEY (family, tenant, until, seq, part)
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);
ALTER TABLE tarbox.audit ALTER COLUMN data SET STORAGE EXTERNAL;

-- From position silent_from to silent_to nothing but the audit changed; a release that does not know it moves the position past silent_to.
ALTER TABLE tarbox.tenant ADD COLUMN silent_from bigint NOT NULL DEFAULT -1, ADD COLUMN silent_to bigint NOT NULL DEFAULT -1;

-- A tenant's login (version 5) adds events of its tenant and reads them. It removes none: that is the owner's. It may try (a mounter of any
-- kind does), and without a policy finds nothing to remove.
ALTER TABLE tarbox.audit ENABLE ROW LEVEL SECURITY;
GRANT SELECT, INSERT, DELETE ON tarbox.audit TO PUBLIC;
CREATE POLICY own_read ON tarbox.audit FOR SELECT USING (tenant = tarbox.own_tenant());
CREATE POLICY own_add ON tarbox.audit FOR INSERT WITH CHECK (tenant = tarbox.own_tenant() AND family = tarbox.own_family());
GRANT UPDATE (silent_from, silent_to) ON tarbox.tenant TO PUBLIC;
