// Refusals of the binding. The Python side says the same in more words; these reach who calls the operator itself.
#pragma once

#include <sstream>
#include <stdexcept>

namespace kdengine {

template <typename... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream message;
  message << "kdengine::kd_loss: ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

}  // namespace kdengine
