//! One suite over both engines: what every [`Database`] must do, shown through its public door.
//!
//! An engine's tests name a function that makes an empty place ([`Site`]) and expand [`suite!`].

pub mod audit;
pub mod blocks;
pub mod chains;
pub mod checks;
pub mod constant;
pub mod history;
pub mod layers;
pub mod leases;
pub mod publications;
pub mod quota;
pub mod races;
pub mod records;
pub mod rows;
pub mod tenants;
pub mod writer;

use std::sync::Arc;

use async_trait::async_trait;
use tarbox_types::{BlockId, SessionId};

use crate::Database;

/// An empty place for a database, and what the suite cannot do through the API.
#[async_trait]
pub trait Site: Send + Sync {
    /// Opens the database: each time as another process would.
    async fn open(&self) -> crate::Result<Arc<dyn Database>>;

    /// The process of session `dead` is gone (its [`Database`] has been dropped): makes what the engine goes by show it,
    /// and lets `claimant` claim.
    async fn expire(&self, dead: SessionId, claimant: SessionId);

    /// Writes this as the schema's `min_version`.
    async fn set_min_version(&self, min_version: u32);

    /// Flips a bit of the stored bytes of a block, behind the engine's back.
    async fn flip_bit(&self, block: BlockId);

    /// Runs this SQL on the rows of the only family, behind the engine's back. Only plain statements that both dialects know.
    async fn damage(&self, sql: &str);
}

/// Expands to a test per property; `$make` is an expression that gives an `impl Site`.
macro_rules! suite {
    ($make:expr) => {
        $crate::conformance::suite! { @async $make;
            tenants::making_a_tenant_twice_changes_nothing
            tenants::a_new_tenant_has_only_its_root
            tenants::names_are_unique_among_the_living_and_free_after_deletion
            tenants::bad_values_are_refused_by_name
            tenants::limits_change_at_once
            tenants::deletion_repeats_and_reaping_removes_every_trace
            tenants::a_held_tenant_is_not_deleted
            tenants::a_tenant_deleted_while_it_is_held_goes_on_until_it_is_given_back
            tenants::who_dies_leaves_a_tenant_behind_and_who_ends_does_not
            tenants::a_newer_min_version_is_refused
            records::a_request_is_one_volume_however_often_it_is_noted
            records::living_tenants_are_listed_in_pages
            records::a_snapshot_is_noted_settled_listed_and_dropped
            records::a_snapshots_name_is_free_once_it_is_dropped
            records::the_holder_learns_of_layers_to_seal_and_seals_each_once
            records::a_tenant_whose_snapshots_are_kept_is_not_reaped
            records::snapshots_that_are_kept_of_a_deleted_tenant_outlive_its_relatives
            records::a_clone_begins_at_a_layer_of_a_deleted_tenant
            records::a_checkpoint_is_unique_in_its_tenant_and_goes_with_it
            records::tags_name_layers_and_are_moved_and_go
            records::what_was_left_behind_is_listed
            records::one_leads_until_it_steps_down_or_dies
            publications::a_volume_is_published_to_whom_its_access_mode_allows
            publications::two_nodes_at_the_same_moment_get_a_volume_of_one_node_once
            publications::what_is_deleted_is_published_to_nobody_and_its_publications_go
            publications::any_node_may_be_until_one_has_said_that_it_is_there
            tenants::what_was_committed_is_there_for_another_process
            leases::a_held_lease_is_refused_and_names_its_holder
            leases::a_closed_session_frees_its_leases
            leases::a_dead_session_frees_its_leases
            leases::each_lease_has_a_new_epoch_token_and_numbers
            leases::a_writer_that_lost_its_lease_commits_nothing
            leases::a_commit_from_another_position_writes_nothing
            leases::a_released_lease_commits_nothing
            leases::a_beat_tells_of_limits_and_wishes
            rows::every_kind_of_row_reads_back
            rows::rows_change_and_go
            rows::a_directory_is_paged_by_cookies_under_deletion
            rows::orphans_are_listed
            rows::patches_lie_over_blocks_inline_bytes_and_holes
            rows::truncation_cuts_extents_and_their_patches
            rows::a_large_batch_commits
            rows::names_are_bytes
            blocks::ids_are_handed_out_once
            blocks::uploaded_blocks_are_found_only_after_their_commit
            blocks::a_flipped_bit_is_damage_when_read
            blocks::parts_of_a_block_read_as_the_whole_does
            blocks::a_flipped_bit_is_damage_in_its_part_and_nowhere_else
            blocks::collected_blocks_cannot_be_reused
            blocks::blocks_still_referred_to_are_never_collected
            blocks::collecting_races_with_commits_that_reuse
            blocks::orphaned_uploads_are_collected
            blocks::stray_blocks_are_found_and_collected_once_they_are_offered
            layers::a_sealed_view_does_not_change
            layers::the_same_request_seals_once
            layers::an_unmounted_tenant_is_sealed_and_its_old_holder_fenced
            layers::restore_goes_back_and_keeps_what_was
            layers::restoring_again_and_again_keeps_chains_short
            layers::a_clone_sees_its_source_and_changes_alone
            layers::a_clone_writes_over_patches_that_it_has_from_its_source
            layers::truncation_in_a_clone_hides_the_ancestors_blocks
            layers::truncation_in_a_clone_of_a_clone_hides_only_what_it_cut
            layers::a_removed_name_stays_removed_in_a_clone_and_can_be_made_again
            layers::a_tenants_own_layers_are_listed_and_found_by_name_on_whatever_branch
            layers::what_differs_between_views_is_named
            layers::an_inodes_names_are_found_in_every_view
            layers::a_restore_counts_as_a_commit
            layers::deleting_a_layer_prunes_only_what_no_view_needs
            layers::a_layer_with_a_clone_is_not_deleted
            layers::a_clone_outlives_its_source
            layers::a_removed_content_stays_in_views
            chains::a_chain_of_clones_becomes_short_and_shows_the_same
            chains::what_is_flattened_needs_its_source_no_more
            chains::flattening_races_with_commits_and_checkpoints_stay
            races::nothing_that_is_referred_to_goes_whatever_is_collected_meanwhile
            quota::a_history_takes_what_views_show_and_the_head_does_not
            quota::a_removed_file_and_a_line_that_was_left_are_history
            quota::a_miscounted_history_is_found_and_set_right
            audit::events_come_with_their_commit_or_not_at_all
            audit::events_are_read_by_time_in_pages_from_either_end
            audit::old_events_go_the_oldest_first_and_only_the_tenants_own
            audit::events_alone_do_not_make_a_tenant_another_one
            audit::neither_restore_nor_clone_nor_a_deleted_checkpoint_changes_what_was_audited
            checks::a_sound_tenant_has_no_faults
            checks::each_broken_invariant_is_found
            checks::rows_that_vanished_are_found
            checks::repair_sets_counters_and_removes_orphans
            checks::a_flipped_bit_is_found
        }
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        #[ignore = "measures, and asserts nothing: make constant"]
        async fn constant_time() {
            let site = $make;
            $crate::conformance::constant::layers_of_tenants_of(&site, &[1_000, 1_000_000]).await;
            $crate::conformance::constant::the_head_behind_many_checkpoints(&site).await;
            $crate::conformance::constant::a_chain_of_clones(&site).await;
        }
        $crate::conformance::suite! { @sync $make;
            history::kept_views_never_change
        }
    };
    (@async $make:expr; $($module:ident :: $name:ident)*) => { $(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let site = $make;
            $crate::conformance::$module::$name(&site).await;
        }
    )* };
    (@sync $make:expr; $($module:ident :: $name:ident)*) => { $(
        #[test]
        fn $name() {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            let site = runtime.block_on(async { $make });
            $crate::conformance::$module::$name(&runtime, &site);
        }
    )* };
}
pub(crate) use suite;
