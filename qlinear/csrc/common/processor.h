// What the rest needs from the folder of a processor (x86/, ...).
#pragma once

namespace awq {

// Tell the processor that this thread waits for another: for the body of a loop that waits.
void pause();

}  // namespace awq
