//! The system allocator with counters of this thread's allocations.
#![allow(unsafe_code, reason = "counting needs a global allocator, which is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<i64> = const { Cell::new(0) };
    static PEAK: Cell<i64> = const { Cell::new(0) };
}

// SAFETY: all calls go to the system allocator unchanged; the counters neither allocate nor have destructors.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        let bytes = BYTES.with(|n| {
            n.set(n.get() + layout.size() as i64);
            n.get()
        });
        PEAK.with(|peak| peak.set(peak.get().max(bytes)));
        // SAFETY: the caller upholds the contract of `alloc`, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        BYTES.with(|n| n.set(n.get() - layout.size() as i64));
        // SAFETY: `at` was allocated by `System` with this layout, in `alloc` above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static GLOBAL: Counting = Counting;

/// The number of allocations so far.
pub(crate) fn allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}

/// The number of bytes currently allocated.
pub(crate) fn bytes() -> i64 {
    BYTES.with(Cell::get)
}

/// The largest number of bytes that `what` had allocated at once, beyond what was allocated before.
pub(crate) fn peak(what: impl FnOnce()) -> i64 {
    let before = bytes();
    PEAK.with(|peak| peak.set(before));
    what();
    PEAK.with(Cell::get) - before
}
