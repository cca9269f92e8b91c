// Measurements of machines, kept from process to process.
//
// A file of lines in the user's cache folder, one for each CPU, target and
// number of threads. What is missing, unreadable or senseless in it is measured
// again, and a folder that cannot be written means that nothing is kept.
#pragma once

#include <cstddef>
#include <optional>
#include <string>

#include "convert/machine_model.h"

namespace mlx_entropy {

// $XDG_CACHE_HOME, else ~/.cache, /mlx-entropy/machine-model.txt; empty if
// there is neither.
std::string machine_store_file();

std::optional<MachineModel> stored_machine(const std::string& target,
                                           size_t threads);
// The file that it is in now, whole or not at all; empty if it is in none.
std::string store_machine(const MachineModel& machine);

}  // namespace mlx_entropy
