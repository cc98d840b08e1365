// How many threads a token is read with. On a core that somebody else works on a thread is held up in the middle of a
// phase, the others wait for it, and fewer threads are faster; what is computed is the same. So it is tried out, where
// tokens take longer than they did, and again after a while.
#pragma once

#include <stdint.h>

#include <algorithm>
#include <limits>

namespace awq {

class Pace {
 public:
  // For the next token, of `most`.
  int64_t threads(int64_t most) {
    if (most != most_) {
      *this = Pace();
      most_ = now_ = most;
    }
    return left_ > 0 ? tried_ : now_;
  }

  // What it took, in seconds.
  void took(double seconds) {
    if (left_ > 0) {
      sum_ += seconds;
      if (--left_ == 0) decide(sum_ / TRIAL);
      return;
    }
    usual_ = calls_ == 0 ? seconds : usual_ + (seconds - usual_) / SMOOTH;
    least_ = std::min(least_, seconds);
    if (++calls_ % PERIOD != 0) return;
    const bool held_up = usual_ > HELD_UP * std::min(least_, least_before_);
    least_before_ = least_;
    least_ = NEVER;
    const bool down = now_ > 1 && held_up && (now_ == most_ || !went_down_);
    went_down_ = down;
    if (down) try_out(now_ - 1);
    else if (now_ < most_) try_out(now_ + 1);
  }

 private:
  static constexpr int64_t PERIOD = 32, TRIAL = 6, SOON = 8;
  static constexpr double SMOOTH = 8, HELD_UP = 1.2, WORTH = 0.97;
  static constexpr double NEVER = std::numeric_limits<double>::infinity();

  void try_out(int64_t threads) {
    tried_ = threads;
    left_ = TRIAL;
    sum_ = 0;
  }

  void decide(double mean) {
    if (mean > (tried_ < now_ ? WORTH : 1) * usual_) return;
    now_ = tried_;
    usual_ = mean;
    least_ = least_before_ = mean;
    calls_ = PERIOD - SOON;  // what was good once may be so again
  }

  int64_t most_ = 0, now_ = 0, tried_ = 0, left_ = 0, calls_ = 0;
  double usual_ = 0, sum_ = 0, least_ = NEVER, least_before_ = NEVER;
  bool went_down_ = false;
};

}  // namespace awq
