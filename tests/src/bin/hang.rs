//! A program that starts and does nothing, whatever it is told: what an upgrade must be able to get away from.

fn main() {
    loop {
        std::thread::park();
    }
}
